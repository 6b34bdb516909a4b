"""Write samples that start from `<|endoftext|>`. It has the name and the flags of OpenAI's script.

python examples/generate_unconditional_samples.py --model_name 124M --nsamples 4 --top_k 40
"""

import argparse
import itertools
import os

import gpt2_tf


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name", default="124M", help="a size, a folder, or shakespeare (default: 124M)")
    parser.add_argument("--seed", type=int, help="the same seed gives the same texts (default: a random seed)")
    parser.add_argument("--nsamples", type=int, default=0, help="number of samples; 0 continues until Ctrl-C (default)")
    parser.add_argument("--batch_size", type=int, default=1, help="samples computed together (default: 1)")
    parser.add_argument("--length", type=int, help="new tokens per sample (default: the model's window)")
    parser.add_argument("--temperature", type=float, default=1, help="divides the logits (default: 1)")
    parser.add_argument("--top_k", type=int, default=0, help="keep the k most likely tokens; 0 keeps all (default)")
    parser.add_argument(
        "--top_p", type=float, default=1, help="keep the most likely tokens of this total probability (default: 1, all)"
    )
    parser.add_argument("--models_dir", default="models", help="folder of downloaded models (default: models)")
    args = parser.parse_args()
    if args.batch_size < 1 or args.nsamples < 0 or args.nsamples % args.batch_size:
        parser.error(f"--nsamples {args.nsamples} is not a multiple of --batch_size {args.batch_size}")

    model, enc = gpt2_tf.load(args.model_name, args.models_dir)
    for first in itertools.count(step=args.batch_size):
        if args.nsamples and first >= args.nsamples:
            break
        samples = gpt2_tf.sample_sequence(
            model,
            length=model.hparams.n_ctx if args.length is None else args.length,
            start_token=enc.end_of_text,
            batch_size=args.batch_size,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            seed=None if args.seed is None else args.seed + first,
        )
        for i, sample in enumerate(samples.numpy(), start=first + 1):
            print(f"{f' SAMPLE {i} ':=^80}\n{enc.decode(sample[1:])}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # As in `| head -1`. Without os._exit, Python would flush stdout at exit and complain.
        os._exit(1)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        print()
        raise SystemExit(130) from None
