"""Ask for a prompt, continue it, and ask for the next. It has the name and the flags of OpenAI's script.

python examples/interactive_conditional_samples.py --model_name 124M --top_k 40
"""

import argparse
import os

import gpt2_tf


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name", default="124M", help="a size, a folder, or shakespeare (default: 124M)")
    parser.add_argument("--seed", type=int, help="the same seed gives the same texts (default: a random seed)")
    parser.add_argument("--nsamples", type=int, default=1, help="samples per prompt (default: 1)")
    parser.add_argument("--batch_size", type=int, default=1, help="samples computed together (default: 1)")
    parser.add_argument("--length", type=int, help="new tokens per sample (default: half of the model's window)")
    parser.add_argument("--temperature", type=float, default=1, help="divides the logits (default: 1)")
    parser.add_argument("--top_k", type=int, default=0, help="keep the k most likely tokens; 0 keeps all (default)")
    parser.add_argument(
        "--top_p", type=float, default=1, help="keep the most likely tokens of this total probability (default: 1, all)"
    )
    parser.add_argument("--models_dir", default="models", help="folder of downloaded models (default: models)")
    args = parser.parse_args()
    if args.batch_size < 1 or args.nsamples < 1 or args.nsamples % args.batch_size:
        parser.error(f"--nsamples {args.nsamples} is not a multiple of --batch_size {args.batch_size}")

    model, enc = gpt2_tf.load(args.model_name, args.models_dir)
    length = model.hparams.n_ctx // 2 if args.length is None else args.length
    if not 1 <= length <= model.hparams.n_ctx:
        parser.error(f"--length is {length}, but must be 1 to {model.hparams.n_ctx}, the model's window")
    # Check the settings before the first prompt.
    params = gpt2_tf.SamplingParams(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p)
    params.check_vocabulary_size(model.hparams.n_vocab)
    while True:
        try:
            prompt = input("Model prompt >>> ")
        except EOFError:
            print()
            break
        if not prompt:
            print("Prompt should not be empty!")
            continue
        context = enc.encode(prompt)
        if len(context) > model.hparams.n_ctx:
            print(f"Prompt should not be longer than {model.hparams.n_ctx} tokens! It has {len(context)}.")
            continue
        for first in range(0, args.nsamples, args.batch_size):
            samples = gpt2_tf.sample_sequence(
                model,
                length=min(length, model.hparams.n_ctx + 1 - len(context)),
                context=context,
                batch_size=args.batch_size,
                temperature=args.temperature,
                top_k=args.top_k,
                top_p=args.top_p,
                seed=None if args.seed is None else args.seed + first,
            )
            for i, sample in enumerate(samples.numpy(), start=first + 1):
                print(f"{f' SAMPLE {i} ':=^80}\n{enc.decode(sample[len(context) :])}")
        print("=" * 80)


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
