import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'^__version__ = "(.+)"$', (here / "gpt2_tf/__init__.py").read_text("utf-8"), re.MULTILINE)[1]

tokenizers = ["tokenizers>=0.20"]
hf = ["huggingface_hub>=0.26"]
keras_nlp = ["keras-nlp>=0.18"]
plot = ["matplotlib>=3.8"]
serving = ["tensorflow-serving-api>=2.20"]
tensorboard = ["tensorboard>=2.18"]
wandb = ["wandb>=0.19"]
notebook = ["nbclient>=0.10", "ipykernel>=6"]
test = ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6", "regex", "ruff>=0.9", *tokenizers, *hf, *keras_nlp]
test += [*plot, *serving, *tensorboard, *wandb, *notebook]

setup(
    name="gpt2-tf",
    version=version,
    description="GPT-2 in TensorFlow and Keras, faithful to OpenAI's release",
    long_description=(here / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=["encoder", *find_packages(include=["gpt2_tf", "gpt2_tf.*"])],
    package_data={"gpt2_tf": ["bundled/shakespeare/*"]},
    py_modules=["download_model"],
    install_requires=[
        "tensorflow>=2.20",
        "keras>=3.10",
        "numpy>=1.26",
        # LiteRT has wheels for these; elsewhere, TensorFlow runs the models.
        "ai-edge-litert>=2.1.6,<3; (sys_platform == 'linux' and platform_machine in 'x86_64 aarch64') "
        "or (sys_platform == 'win32' and platform_machine == 'AMD64') "
        "or (sys_platform == 'darwin' and platform_machine == 'arm64')",
        "filelock>=3.24",  # before, a lock file that is removed could let two processes in
        "ml_dtypes>=0.4",  # NumPy's bfloat16; TensorFlow needs it too
        "google-crc32c>=1.6",
        "requests>=2.31",
        "tiktoken>=0.14",  # before, a long run of letters took quadratic time
        "tqdm>=4.66",
    ],
    extras_require={
        "cuda": ["tensorflow[and-cuda]>=2.20; platform_system == 'Linux'"],
        "tokenizers": tokenizers,
        "hf": hf,
        "keras-nlp": keras_nlp,
        "lm-eval": ["lm-eval>=0.4.13"],
        "plot": plot,
        "serving": serving,
        "tensorboard": tensorboard,
        "wandb": wandb,
        "notebook": notebook,
        "test": test,
        "peers": ["transformers>=4.50", "torch>=2.5", "lm-eval[hf]>=0.4.13"],
    },
    entry_points={"console_scripts": ["gpt2-tf = gpt2_tf.cli.main:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
