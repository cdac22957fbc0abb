"""Training from other weights: upcycling, other labels, other sizes, and what is refused."""

from dataclasses import replace

import pytest
import torch

from hemstitch import HemstitchError, NetDenoiser, Plan, Process, Spec, build, load, recipes, save
from hemstitch.cli import main
from hemstitch.models import NetConfig
from hemstitch.run import Run
from hemstitch.train.engine import Engine
from hemstitch.train.finetune import begin_from
from hemstitch.train.fit import fit
from hemstitch.train.loop import prepare
from hemstitch.weights.native import Samples

TINY = NetConfig(input_size=8, channels=1, width=16, depth=2, heads=2, num_classes=10, learned_variance=False)


def randomised(config, seed=0):
    torch.manual_seed(seed)
    net = build(config)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return net


def denoiser(config, seed=0):
    spec = Spec(config.channels, config.input_size, config.num_classes, config.null_label)
    return NetDenoiser(randomised(config, seed).eval(), Process(), spec)


def inputs(labels):
    torch.manual_seed(1)
    return torch.randn(4, 1, 8, 8), torch.tensor([0, 10, 500, 999]), torch.tensor(labels)


def test_upcycling_changes_nothing_at_first(tmp_path):
    """The first output of the Switch-DiT is the dense DiT's, bit for bit, through the recipe as a person writes it."""
    dense = denoiser(TINY)
    save(dense, tmp_path / "dense.safetensors")
    recipe = recipes.recipe("debug").overridden(
        {"net.width": "16", "net.depth": "2", "net.heads": "2", "init": str(tmp_path / "dense.safetensors")}
    )
    trainee = prepare(recipe.fitted(1, 8, 10), Engine(recipe.train, tmp_path, "cpu", []), Samples())
    assert trainee.notes == ("upcycled: 2 × 3 experts are zero and their gates new",)
    batch = inputs([0, 3, 9, 10])
    with torch.no_grad():
        assert torch.equal(trainee.net(*batch), dense.net(*batch))
    told = list(fit(recipe.overridden({"steps": "4", "log_every": "1"}), tmp_path / "run", device="cpu"))
    assert told[-1].step == 4
    trained = load(tmp_path / "run", weights="model").net
    assert float(trained.routers[0].experts.w.detach().abs().max()) > 0
    assert "upcycled" in (Run(tmp_path / "run").path / "provenance.jsonl").read_text()


def test_another_number_of_classes():
    source, net = denoiser(TINY), build(replace(TINY, num_classes=4))
    (note,) = begin_from(net, source)
    assert "4 classes here, 10 there" in note
    x, t, _ = inputs([0] * 4)
    with torch.no_grad():
        null = [n(x, t, torch.full((4,), k)) for n, k in ((net, 4), (source.net, 10))]
        labelled = [n(x, t, torch.zeros(4, dtype=torch.long)) for n in (net, source.net)]
    assert torch.equal(*null)
    assert not torch.equal(*labelled)
    assert 0 < float(net.y_embedder.embedding_table.weight.detach()[:4].std()) < 0.04


def test_labels_taken_away_and_the_null_label_given():
    x, t, y = inputs([0, 1, 2, 3])
    unconditional = build(replace(TINY, num_classes=0, null_label=False))
    source = denoiser(TINY)
    begin_from(unconditional, source)
    with torch.no_grad():
        assert torch.equal(unconditional(x, t), source.net(x, t, torch.full((4,), 10)))
    without = denoiser(replace(TINY, null_label=False))
    net = build(TINY)
    begin_from(net, without)
    with torch.no_grad():
        assert torch.equal(net(x, t, y), without.net(x, t, y))


def test_another_size_recomputes_positions():
    net = build(replace(TINY, input_size=16))
    (note,) = begin_from(net, denoiser(TINY))
    assert "positions recomputed for 16 from 8" in note
    assert torch.equal(net.pos_embed, build(replace(TINY, input_size=16)).pos_embed)


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ({"width": 32}, {}, "width 16 there and 32 here"),
        ({"channels": 3}, {}, "channels 1 there and 3 here"),
        ({}, {"family": "switch_dit"}, "a switch_dit does not become a dit"),
        ({"family": "dtr"}, {}, "a dit does not become a dtr"),
        ({"family": "switch_dit", "experts": 4}, {"family": "switch_dit"}, "experts 3 there and 4 here"),
    ],
)
def test_other_networks_are_refused(ours, theirs, said):
    with pytest.raises(HemstitchError, match=said):
        begin_from(build(replace(TINY, **ours)), denoiser(replace(TINY, **theirs)))


def test_interval_fine_tuning_from_the_command_line(tmp_path, capsys):
    """Each member trains on the timesteps that the plan gives it, from its own weights."""
    save(denoiser(TINY), tmp_path / "small.safetensors")
    (tmp_path / "plan.json").write_text(Plan.fractions({"small": 0.5, "large": 0.5}, 10).to_json())
    options = "--net.family dit --net.width 16 --net.depth 2 --net.heads 2 --steps 2 --batch 4 --device cpu"
    files = ["--init", tmp_path / "small.safetensors", "--plan", tmp_path / "plan.json", "--out", tmp_path / "run"]
    command = ["train", "debug", *options.split(), *map(str, files)]
    assert main([*command, "--member", "small"]) == 0
    recipe = Run(tmp_path / "run").recipe
    assert recipe.train.intervals == ((445.0, 1000.0),)
    assert main(command) == 2
    assert "--plan and --member go together" in capsys.readouterr().err


def test_another_process_or_space_is_refused():
    source = denoiser(TINY)
    with pytest.raises(HemstitchError, match=r"trained under Process\(schedule='linear'.*the recipe has .*'flow'"):
        begin_from(build(TINY), source, Process("flow", "flow"))
    named = NetDenoiser(source.net, source.process, replace(source.spec, space="digits"))
    with pytest.raises(HemstitchError, match=r"denoise the space 'digits' and the data are of 'folder:x'"):
        begin_from(build(TINY), named, Process(), Samples("folder:x"))
    assert begin_from(build(TINY), named, Process(), Samples("digits")) == []


def test_a_run_goes_on_without_the_weights_it_began_from(tmp_path):
    save(denoiser(TINY), tmp_path / "dense.safetensors")
    recipe = recipes.recipe("debug").overridden(
        {"net.width": "16", "net.depth": "2", "net.heads": "2", "init": str(tmp_path / "dense.safetensors")}
    )
    list(fit(recipe.overridden({"steps": "2"}), tmp_path / "run", device="cpu"))
    (tmp_path / "dense.safetensors").unlink()
    assert list(fit(recipe.overridden({"steps": "3"}), tmp_path / "run", device="cpu", resume=True))[-1].step == 3


def test_missing_weights_are_named(tmp_path):
    recipe = recipes.recipe("debug").overridden({"init": str(tmp_path / "absent.safetensors")})
    with pytest.raises(HemstitchError, match=r"no file or folder .*absent"):
        list(fit(recipe, tmp_path / "run", device="cpu"))
    assert not (tmp_path / "run").exists()
