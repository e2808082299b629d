"""Models saved, pushed and loaded by the Hub's library, against a server that speaks its protocol."""

import json
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from crate_mm import Predictor, init_model
from crate_mm.checkpoints import CheckpointError, open_checkpoint


@pytest.fixture
def hub_model(hub):
    from crate_mm.hub import HubModel

    return HubModel


@pytest.fixture
def pushed(hub, hub_model, debug_checkpoint):
    address = hub_model(debug_checkpoint, licence="mit").push_to_hub("me/digits", private=False)
    assert address.startswith(f"{hub.address}/me/digits/commit/")
    return hub.repos["me/digits"]["main"]


def test_what_is_pushed_is_data_and_computes_what_ours_does(pushed, hub_model, debug_checkpoint):
    assert pushed.keys() == {"model.safetensors", "config.json", "README.md"}
    config, opened = json.loads(pushed["config.json"]), open_checkpoint(debug_checkpoint)
    assert config["model"] == json.loads(json.dumps(opened.model))
    assert (config["classes"], config["run"]) == (list("0123456789"), opened.run)
    weights = open_checkpoint("hf://me/digits/model.safetensors").weights
    assert torch.equal(weights["head.fc.weight"], opened.weights["head.fc.weight"])
    ours, theirs = init_model("debug", debug_checkpoint), hub_model.from_pretrained("me/digits")
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (ours(images) - theirs.model(images)).abs().max() < 1e-5
        assert torch.equal(theirs(images), theirs.model(images))
    assert not theirs.model.training
    assert theirs.model.class_names == list("0123456789")
    picture = torch.randint(0, 256, (8, 8), dtype=torch.uint8).numpy()
    assert Predictor(theirs.model)(picture) == Predictor(ours)(picture), "normalisation and transforms came along"


def test_the_card_is_the_runs_and_its_code_works(pushed, debug_checkpoint, tmp_path):
    from huggingface_hub import ModelCard

    result = json.loads((debug_checkpoint.parent / "result.json").read_text())
    card = ModelCard(pushed["README.md"].decode())
    assert card.data.license == "mit"
    assert (card.data.library_name, card.data.pipeline_tag) == ("crate_mm", "image-classification")
    assert {"white-box", "crate"} <= set(card.data.tags)
    told = {found.metric_type: found for found in card.data.eval_results}
    assert told["accuracy"].metric_value == result["last"]["top1"]
    assert told["accuracy"].dataset_name == "Digits"
    assert f"| parameters | {result['parameters']:,} |" in card.text
    assert f"| top-1 accuracy, % | {result['last']['top1']:.6g} |" in card.text
    assert str(debug_checkpoint.parent) not in card.text, "where it was trained is nobody's business"
    Image.new("L", (8, 8)).save(tmp_path / "image.jpg")
    code = card.text.partition("```python\n")[2].partition("```")[0]
    assert "HubModel.from_pretrained('me/digits')" in code
    exec(compile(code.replace("image.jpg", str(tmp_path / "image.jpg")), "README.md", "exec"), {})


def test_nothing_is_pushed_or_loaded_with_a_token_over_http(hub, pushed, hub_model, debug_checkpoint):
    hub_model.from_pretrained("me/digits", token="hf_given")
    hub_model(debug_checkpoint).push_to_hub("me/digits", token="hf_given")
    assert set(hub.tokens) == {None}, "HF_TOKEN is set, and the server is one of http"


def test_what_is_saved_tells_no_folder_and_no_signature(hub_model, debug_checkpoint, tmp_path):
    """It goes to others: of what the user had, names stay, and addresses without what opens them."""
    opened = open_checkpoint(debug_checkpoint)
    for number, (source, told) in enumerate(
        {
            "/home/alice/secret project/pre.pth": "pre.pth",
            "secret/pre.pth": "pre.pth",
            "C:\\alice\\pre.pth": "pre.pth",
            "https://me:secret@host/pre.pth?X-Signature=secret": "https://host/pre.pth",
        }.items()
    ):
        recipe = {"initialized_from": source, "train_transforms": [{"type": "A", "root": "/home/alice/data", "p": 0.5}]}
        opened.meta.update(initialized_from=source, recipe=recipe, averaged_from=[source])
        folder = tmp_path / str(number)
        hub_model(opened).save_pretrained(folder)
        assert not any(word in file.read_bytes() for file in folder.iterdir() for word in (b"alice", b"secret"))
        config = json.loads((folder / "config.json").read_text())
        assert (config["initialized_from"], config["averaged_from"]) == (told, [told])
        assert config["recipe"]["train_transforms"] == [{"type": "A", "root": "data", "p": 0.5}]
        assert "| started from | pre.pth |" in (folder / "README.md").read_text()


def test_no_name_is_a_heading_or_front_matter_of_a_card(hub_model, debug_checkpoint, in_copy, tmp_path):
    from huggingface_hub import ModelCard

    in_copy(debug_checkpoint)
    forged = "x\n---\nlicense: other\n# Forged <img src=x> [a](b) `c` | d **e**"
    result = json.loads((debug_checkpoint.parent / "result.json").read_text())
    result |= {"dataset": forged, "device": forged}
    result["best"] = {**result["best"], forged: 1.0}
    result["last"] = {**result["last"], forged: 1.0}
    (tmp_path / "result.json").write_text(json.dumps(result))
    hub_model(tmp_path / "epoch_1.pth", licence="mit").save_pretrained(tmp_path / "saved")
    card = ModelCard((tmp_path / "saved" / "README.md").read_text())
    assert card.data.license == "mit"
    assert [line for line in card.text.splitlines() if line.startswith("#")][1:] == [
        "## Use",
        "## Metrics",
        "## Training",
    ]
    assert "Forged" in card.text
    assert not any(mark in card.text for mark in ("<img", "[a]", "`c`", "**e**"))


def test_the_figures_are_those_of_the_checkpoints_epoch(hub_model, debug_checkpoint, in_copy, tmp_path):
    result = json.loads((debug_checkpoint.parent / "result.json").read_text())
    result["last"] = {**result["last"], "epoch": 2, "top1": 77.0}
    in_copy(debug_checkpoint)
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert hub_model(tmp_path / "epoch_1.pth").metrics["top1"] == result["best"]["top1"]
    result["best"]["epoch"] = 2
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert hub_model(tmp_path / "epoch_1.pth").metrics == {}


def test_the_result_of_another_run_is_not_told(hub_model, debug_checkpoint, in_copy, tmp_path):
    in_copy(debug_checkpoint)
    other = {"run": "another", "last": {"epoch": 1, "top1": 99.9}}
    (tmp_path / "result.json").write_text(json.dumps(other))
    model = hub_model(tmp_path / "epoch_1.pth")
    model.save_pretrained(tmp_path / "saved")
    assert "99.9" not in (tmp_path / "saved" / "README.md").read_text()
    with pytest.raises(CheckpointError, match="result.json belongs to another run than .*epoch_1.pth"):
        hub_model(tmp_path / "epoch_1.pth", result=tmp_path / "result.json")
    (tmp_path / "result.json").write_text("[[")
    with pytest.raises(CheckpointError, match="is not a run's result.json"):
        hub_model(tmp_path / "epoch_1.pth", result=tmp_path / "result.json")


def test_a_folder_is_saved_and_loaded_without_the_hub(hub, hub_model, debug_checkpoint, tmp_path):
    first = hub_model(debug_checkpoint)
    first.save_pretrained(tmp_path / "saved")
    again = hub_model.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in first.model.state_dict().items())
    assert again.metrics == first.metrics != {}, "they are in config.json"
    loaded = hub_model.from_pretrained(tmp_path / "saved", map_location=torch.device("meta"), strict=True)
    assert {value.device.type for value in loaded.parameters()} == {"meta"}
    again.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config == json.loads((tmp_path / "saved" / "config.json").read_text())
    assert hub.requests == []


def test_a_licence_is_one_of_the_hubs_or_another_by_its_name(hub_model):
    from crate_mm.extras.interop.model_card import card_licence

    assert card_licence("MIT") == {"license": "mit"}
    assert card_licence("other: for my group alone") == {"license": "other", "license_name": "for my group alone"}
    with pytest.raises(ValueError, match="no license mid: did you mean mit.*; write any other license as 'other: <nam"):
        hub_model("none.pth", licence="mid")  # before the file is opened


def test_weights_that_were_trained_on_are_saved_without_the_old_figures(hub_model, debug_checkpoint, tmp_path):
    model = hub_model(debug_checkpoint)
    with torch.no_grad():
        model.model.head.fc.bias += 1
    model.save_pretrained(tmp_path)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["head.fc.bias"], model.model.head.fc.bias)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["metrics"], config["run"], config["classes"]) == ({}, None, list("0123456789"))
    assert "No metrics of these weights are known" in (tmp_path / "README.md").read_text()


def test_weights_that_another_library_has_stored_are_of_the_config(hub_model, debug_checkpoint, tmp_path):
    """It keeps the tensors and loses what is said beside them."""
    hub_model(debug_checkpoint).save_pretrained(tmp_path)
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")
    model = hub_model.from_pretrained(tmp_path).model
    assert model.class_names == list("0123456789")
    assert torch.equal(model.head.fc.weight, init_model("debug", debug_checkpoint).head.fc.weight)


def changed(folder, **entries) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


def test_a_config_that_is_no_data_of_the_weights_is_refused(hub_model, debug_checkpoint, tmp_path):
    hub_model(debug_checkpoint).save_pretrained(tmp_path)
    saved = (tmp_path / "config.json").read_text()
    model = json.loads(saved)["model"]
    changed(tmp_path, classes=list("abcdefghij"))
    with pytest.raises(CheckpointError, match="config.json and model.safetensors differ in class names"):
        hub_model.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="config.json cannot be read: its lists and dicts are nested too deeply"):
        hub_model.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(CheckpointError, match="config.json cannot be read: it has no model config of crate_mm"):
        hub_model.from_pretrained(tmp_path)
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(saved)
    changed(tmp_path, model={**model, "backbone": {"type": "os.system"}}, checkpoint="/etc/passwd")
    with pytest.raises(CheckpointError, match=r"names the backbone 'os.system', which is not registered"):
        hub_model.from_pretrained(tmp_path)


def test_what_is_neither_a_repository_nor_in_the_cache_is_said(hub, hub_model, pushed):
    """The Hub's other errors are those of ``hub_file``, see checkpoints/test_remote.py."""
    with pytest.raises(CheckpointError, match=r"expected a folder or a repository of the Hub \(owner/name\), got .*di"):
        hub_model.from_pretrained("digits")
    with pytest.raises(CheckpointError, match="it is not in the cache, and http.* is unreachable or offline mode is o"):
        hub_model.from_pretrained("me/digits", local_files_only=True)
    with pytest.raises(CheckpointError, match="the repository has no branch, tag or commit v9"):
        hub_model.from_pretrained("me/digits", revision="v9")
    hub_model.from_pretrained("me/digits")
    asked = len(hub.requests)
    hub_model.from_pretrained("me/digits", local_files_only=True)
    assert len(hub.requests) == asked


def test_a_hub_that_takes_nothing_is_said(hub, hub_model, debug_checkpoint):
    hub.read_only = True
    with pytest.raises(CheckpointError, match=r"could not push to me/digits \(log in with hf auth login or HF_TOKEN"):
        hub_model(debug_checkpoint).push_to_hub("me/digits")


def test_without_huggingface_hub_the_extra_is_named(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"crate_mm.hub needs huggingface_hub, .* pip install 'crate_mm\[hub\]'"):
        import crate_mm.hub  # noqa: F401
