"""Samples from `<|endoftext|>`, on and on, as OpenAI's script of this name; the same flags.

python examples/generate_unconditional_samples.py --model_name 124M --nsamples 4 --top_k 40
"""

import argparse
import itertools
import os

import gpt2_tf


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name", default="124M", help="a size, a folder, or shakespeare (bundled)")
    parser.add_argument("--seed", type=int, help="the same seed gives the same texts")
    parser.add_argument("--nsamples", type=int, default=0, help="0 goes on until Ctrl-C")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--length", type=int, help="tokens a sample (default: the model's window)")
    parser.add_argument("--temperature", type=float, default=1)
    parser.add_argument("--top_k", type=int, default=0)
    parser.add_argument("--top_p", type=float, default=1)
    parser.add_argument("--models_dir", default="models")
    args = parser.parse_args()
    if args.batch_size < 1 or args.nsamples < 0 or args.nsamples % args.batch_size:
        parser.error(f"--nsamples {args.nsamples} is not a multiple of --batch_size {args.batch_size}")

    model, enc = gpt2_tf.load(args.model_name, args.models_dir)
    for generated in itertools.count(step=args.batch_size):
        if args.nsamples and generated >= args.nsamples:
            break
        samples = gpt2_tf.sample_sequence(
            model,
            length=model.hparams.n_ctx if args.length is None else args.length,
            start_token=enc.end_of_text,
            batch_size=args.batch_size,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            seed=None if args.seed is None else args.seed + generated,
        )
        for i, sample in enumerate(samples.numpy(), start=generated + 1):
            print(f"{f' SAMPLE {i} ':=^80}\n{enc.decode(sample[1:])}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # as in `| head -1`: Python would flush once more at its end, and complain
        os._exit(1)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        print()
        raise SystemExit(130) from None
