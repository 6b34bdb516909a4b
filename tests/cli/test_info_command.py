"""`gpt2-tf info`: a model's hyperparameters and files, without a download."""

from pathlib import Path

from oracles.command_line import text_of

from gpt2_tf import HParams

DATA = "model.ckpt.data-00000-of-00001"


def test_info_of_the_bundled_model(cli):
    ran = cli("info")
    assert (ran.status, ran.err) == (0, "")
    described = dict(line.split(maxsplit=1) for line in ran.out.decode().splitlines())
    assert described["model"] == "shakespeare"
    hparams = HParams.from_json(Path(described["folder"], "hparams.json"))
    assert described["parameters"] == f"{hparams.n_params:,}"


def test_info_of_a_folder(cli, tiny_folder):
    lines = text_of(cli("info", "--model", tiny_folder)).splitlines()
    described = dict(line.split(maxsplit=1) for line in lines if not line.startswith("litert "))
    size = (tiny_folder / DATA).stat().st_size
    assert described == {
        "model": str(tiny_folder),
        "folder": str(tiny_folder),
        "n_vocab": "300",
        "n_ctx": "32",
        "n_embd": "16",
        "n_head": "2",
        "n_layer": "2",
        "parameters": f"{size // 4:,}",
        "weights": f"28 tensors, {size:,} bytes in model.ckpt",
    }


def test_info_of_a_size_downloads_nothing(cli, tmp_path):
    out = text_of(cli("info", "--model", "117M", "--models-dir", tmp_path))
    assert "124,439,808" in out
    assert f"not in {tmp_path / '124M'}; `gpt2-tf download 124M --models-dir {tmp_path}` fetches them" in out
    assert list(tmp_path.iterdir()) == []
