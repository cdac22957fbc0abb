import pytest

from hemstitch import HemstitchError, recipes
from hemstitch.recipe import Recipe


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_json_round_trip(name):
    recipe = recipes.recipe(name)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert recipe.train.batch


def test_overrides_by_dotted_name():
    recipe = recipes.recipe("debug").overridden(
        {"steps": "7", "data.path": "a b", "net.width": "32", "train.learning-rate": "1", "train.flip": "true"}
    )
    assert (recipe.train.steps, recipe.data.path, recipe.net.width) == (7, "a b", 32)
    assert recipe.train.learning_rate == 1.0
    assert recipe.train.flip is True


def test_hash_is_of_what_defines_the_result():
    recipe = recipes.recipe("debug")
    assert recipe.overridden({"steps": "9", "checkpoint_every": "3"}).hash == recipe.hash
    assert recipe.overridden({"seed": "9"}).hash != recipe.hash
    assert recipe.difference(recipe.overridden({"seed": "9", "steps": "1"})) == ["train.seed"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"net.wdth": "3"}, "has no 'net.wdth'"),
        ({"stps": "3"}, "has no 'stps'"),
        ({"net": "3"}, "has no 'net'"),
        ({"steps": "many"}, "train.steps is a int, not 'many'"),
        ({"steps": "0"}, "at least 1"),
        ({"train.precision": "fp8"}, "one of auto, fp32, bf16"),
        ({"ema": "1.5"}, "lies in 0"),
        ({"process.learned_variance": "true"}, "agree"),
        ({"process.timesteps": "10"}, "agree"),
        ({"process.schedule": "flw"}, "recipe.process.schedule is one of"),
    ],
)
def test_bad_overrides_are_refused(change, said):
    with pytest.raises(HemstitchError, match=said):
        recipes.recipe("debug").overridden(change)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"name": "x", "learning_rate": 1}', "recipe has no learning_rate"),
        ('{"name": "x", "train": {"lr": 1}}', "recipe.train has no lr"),
        ('{"name": "x", "train": 3}', "recipe.train is an object"),
        ("{}", "incomplete"),
        ("[]", "JSON object"),
        ("{", "JSON"),
    ],
)
def test_bad_recipe_files_are_refused(text, said):
    with pytest.raises(HemstitchError, match=said):
        Recipe.from_json(text)


def test_unknown_presets_are_refused():
    with pytest.raises(HemstitchError, match="no preset is called 'dit'"):
        recipes.recipe("dit")


@pytest.mark.parametrize("family", ["dtr", "switch_dit"])
def test_routing_by_timesteps_needs_timesteps(family):
    changes = {"process.schedule": "flow", "process.prediction": "flow", "process.reverse_time": "true"}
    with pytest.raises(HemstitchError, match=f"a {family} routes by timesteps"):
        recipes.recipe("debug").overridden(changes | {"net.family": family})
