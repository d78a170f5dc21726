"""An evaluation in its folder: resumed, killed, compared, and nothing left out in silence."""

import contextlib
import itertools
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diptych
from diptych.config import CLIPConfig, TextConfig, TokenizerConfig, ViTConfig
from diptych.errors import ConfigError, DataError
from diptych.eval.compare import compare, holm
from diptych.eval.report import write_report
from diptych.eval.retrieval import retrieval
from diptych.eval.run import evaluate, read_report
from diptych.eval.sets import DataSet, Sample, Samples, Unused
from diptych.eval.tasks.classification import halves, number_of_labels


class Stop(Exception):
    """A person who has lost patience."""


COLOURS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (30, 60, 200)}


def square(colour, seed):
    noise = np.random.default_rng(seed).integers(-25, 26, (48, 48, 3))
    pixels = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def picture(colour, seed):
    return lambda: square(colour, seed)


def colours(num=8, **changes):
    def make():
        samples = [
            Sample(f"{name}-{i}", picture(name, 100 * label + i), labels=(label,))
            for label, name in enumerate(COLOURS)
            for i in range(num)
        ]
        return Samples(samples=samples, classes=tuple(COLOURS))

    given = {"name": "colours", "title": "Colours <&>", "task": "classification"}
    given |= {"metric": "top1", "templates": "photo", "size": 3 * num, "make": make}
    return DataSet(**(given | changes))


def pairs(name="pairs", captions=2):
    def make():
        samples = [
            Sample(
                f"{colour}-{i}",
                picture(colour, 7 * i + len(colour)),
                captions=tuple(f"{word} {colour} square {i}" for word in ("a", "one")[:captions]),
            )
            for colour in COLOURS
            for i in range(3)
        ]
        return Samples(samples=samples)

    return DataSet(name=name, title=name, task="retrieval", metric="mean_r1", make=make)


def swaps():
    def make():
        samples = [
            Sample(f"{a}-{b}", [picture(a, 1), picture(b, 2)], captions=(f"{a}", f"{b}"))
            for a, b in itertools.permutations(COLOURS, 2)
        ]
        return Samples(samples=samples)

    return DataSet(name="swaps", title="Swaps", task="choice", metric="group_score", make=make)


@pytest.fixture(scope="module")
def enc():
    return diptych.load("mini", precision="fp32")


def run(enc, rows, out, **given):
    return list(evaluate(enc, rows, out, **given))


def test_every_task_gives_its_headline_with_an_interval(enc, tmp_path):
    rows = [colours(), pairs(), swaps()]
    found = run(enc, rows, tmp_path / "out")
    assert [result["set"] for result in found] == ["colours", "pairs", "swaps"]
    for result in found:
        assert 0 <= result["figures"][result["headline"]]["value"] <= 1
        for figure in result["figures"].values():
            assert figure["low"] is None or figure["low"] <= figure["value"] <= figure["high"]
        assert result["num_measured"] == result["protocol"]["num_samples"]
    assert found[0]["chance"] == pytest.approx(1 / 3)
    top1 = found[0]["figures"]["top1"]
    predicted = np.load(tmp_path / "out/sets/colours/items.npz")
    assert top1["value"] == (predicted["predicted"] == predicted["label"]).mean()
    assert top1["value"] > 0.6  # plain colours are what mini can tell
    assert (
        found[1]["figures"]["text_to_image_r1"]["how"]
        != found[1]["figures"]["image_to_text_r1"]["how"]
    )
    page = write_report(tmp_path / "out").read_text("utf-8")
    assert "Colours &lt;&amp;&gt;" in page
    assert "Colours <&>" not in page


def test_a_sigmoid_model_that_believes_nothing_has_shares(tmp_path):
    size = {"width": 32, "layers": 1, "heads": 2, "mlp_dim": 64}
    config = CLIPConfig(
        embed_dim=16,
        visual=ViTConfig(image_size=(32, 32), patch_size=16, **size),
        text=TextConfig(context_length=16, vocab_size=49408, **size),
        loss="sigmoid",
    )
    model = diptych.build(config, tokenizer=TokenizerConfig(kind="clip_bpe", context_length=16))
    with torch.no_grad():
        model.model.logit_bias.fill_(-500.0)
    (result,) = run(model, [colours(num=2)], tmp_path)
    assert 1 / 3 <= result["tables"]["reliability"][0][3] <= 1
    assert np.isfinite(result["figures"]["nll"]["value"])


def test_what_cannot_be_read_is_named_and_counted(enc, tmp_path):
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff torn")

    def broken():
        raise DataError("shard 3 ends early")

    def make():
        good = colours().make()
        bad = [
            Sample("torn", str(tmp_path / "torn.jpg"), labels=(0,)),
            Sample("shard", broken, labels=(1,)),
        ]
        unused = (Unused("row 7", "no label"),)
        return Samples(samples=[*bad, *good.samples], classes=good.classes, unused=unused)

    (result,) = run(enc, [colours(make=make)], tmp_path / "out")
    told = {line["key"]: line["reason"] for line in result["unused"]}
    assert set(told) == {"row 7", "torn", "shard"}
    assert "torn.jpg" in told["torn"]
    assert told["shard"] == "shard 3 ends early"
    assert result["num_measured"] == 24
    assert result["protocol"]["num_samples"] == 26


def test_a_file_of_several_samples_is_encoded_once(enc, tmp_path, monkeypatch):
    square("red", 1).save(tmp_path / "red.png")
    square("blue", 1).save(tmp_path / "blue.png")
    (tmp_path / "torn.png").write_bytes(b"torn")

    def make():
        names = ("red", "blue", "red", "torn", "torn", "red")
        samples = [
            Sample(f"{i}", str(tmp_path / f"{name}.png"), labels=(0 if name == "red" else 2,))
            for i, name in enumerate(names)
        ]
        return Samples(samples=samples, classes=tuple(COLOURS))

    ran, whole = [], enc.run_image
    monkeypatch.setattr(enc, "run_image", lambda batch: ran.append(len(batch)) or whole(batch))
    (result,) = run(enc, [colours(make=make)], tmp_path / "out")
    assert sum(ran) == 2
    assert result["num_measured"] == 4
    assert [line["key"] for line in result["unused"]] == ["3", "4"]
    assert result["figures"]["top1"]["value"] == 1


def test_a_set_that_cannot_be_measured_does_not_stop_the_others(enc, tmp_path):
    def nothing():
        raise DataError("food101: /data/food101 is not there")

    found = run(enc, [colours(name="food101", make=nothing), colours()], tmp_path / "out")
    assert found[0] == {"set": "food101", "reason": "food101: /data/food101 is not there"}
    report = read_report(tmp_path / "out")
    assert report["not_measured"] == [found[0]]
    assert [result["set"] for result in report["sets"]] == ["colours"]
    assert "/data/food101 is not there" in write_report(tmp_path / "out").read_text("utf-8")


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_broken_off_and_gone_on_with_is_the_same_file(enc, tmp_path):
    rows = [colours(), pairs(), swaps()]
    run(enc, rows, tmp_path / "whole")
    write_report(tmp_path / "whole")

    @contextlib.contextmanager
    def progress(what, total):
        if what == "pairs":
            raise Stop
        yield lambda n: None

    with pytest.raises(Stop):
        run(enc, rows, tmp_path / "broken", progress=progress)
    assert not (tmp_path / "broken/report.json").exists()
    found = run(enc, rows, tmp_path / "broken")
    assert [result["kept"] for result in found] == [True, False, False]
    write_report(tmp_path / "broken")
    assert files(tmp_path / "broken") == files(tmp_path / "whole")
    found = run(enc, rows, tmp_path / "whole")
    assert all(result["kept"] for result in found)


def test_other_samples_or_another_protocol_are_measured_again(enc, tmp_path):
    run(enc, [colours()], tmp_path)
    assert run(enc, [colours()], tmp_path)[0]["kept"]
    assert not run(enc, [colours(templates=None)], tmp_path)[0]["kept"]
    assert not run(enc, [colours(num=7)], tmp_path)[0]["kept"]


def test_the_report_is_of_all_that_the_folder_holds(enc, tmp_path):
    run(enc, [colours()], tmp_path)
    run(enc, [swaps()], tmp_path)
    assert [result["set"] for result in read_report(tmp_path)["sets"]] == ["swaps", "colours"]


def test_a_damaged_result_is_measured_again(enc, tmp_path):
    run(enc, [colours()], tmp_path)
    path = tmp_path / "sets/colours/result.json"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert not run(enc, [colours()], tmp_path)[0]["kept"]
    assert path.read_bytes() == whole


def test_a_folder_belongs_to_one_model(enc, tmp_path):
    run(enc, [colours()], tmp_path)
    other = diptych.build("ViT-B-32/openai", seed=0)
    with pytest.raises(ConfigError, match=r"holds an evaluation of mini .* --out"):
        run(other, [colours()], tmp_path)


def test_clip_benchmark_names(enc, tmp_path):
    run(enc, [colours(), pairs()], tmp_path)
    found = json.loads((tmp_path / "clip_benchmark/colours.json").read_text())
    assert set(found) == {"dataset", "model", "pretrained", "task", "metrics", "language"}
    assert {"acc1", "acc5", "mean_per_class_recall"} <= set(found["metrics"])
    found = json.loads((tmp_path / "clip_benchmark/pairs.json").read_text())
    assert {"image_retrieval_recall@5", "text_retrieval_recall@5"} <= set(found["metrics"])


def test_languages_are_searched_alone(enc, tmp_path):
    def make():
        one = pairs(captions=1).make().samples
        words = ("rot", "gruen", "blau")
        german = [
            Sample(f"de-{s.key}", s.image, captions=(f"{words[i // 3]} {i}",), group="de")
            for i, s in enumerate(one)
        ]
        english = [Sample(s.key, s.image, captions=s.captions, group="en") for s in one]
        return Samples(samples=[*english, *german])

    row = DataSet(name="two", title="Two", task="retrieval", metric="text_to_image_r1", make=make)
    (result,) = run(enc, [row], tmp_path)
    table = {line["language"]: line for line in result["tables"]["languages"]}
    assert set(table) == {"de", "en"}
    assert all(line["num"] == 9 and line["chance"] == 1 / 9 for line in table.values())
    german = make().samples[9:]
    words = enc.encode_text([s.captions[0] for s in german], out="torch")
    pictures = enc.encode_image([s.open() for s in german], out="torch")
    alone = retrieval(pictures, words, torch.arange(9))
    for way in ("image_to_text_r1", "text_to_image_r1"):
        assert table["de"][way]["value"] == alone[way]
    mean = sum(line["text_to_image_r1"]["value"] for line in table.values()) / 2
    assert result["figures"]["text_to_image_r1"]["value"] == pytest.approx(mean)


def test_a_language_of_few_pictures_is_not_in_the_mean(enc, tmp_path):
    def make():
        words = [Sample(f"{c}{i}", picture(c, i), captions=(f"a {c} square {i}",), group="en")
                 for c in COLOURS for i in range(4)]  # fmt: skip
        few = [Sample(f"x{i}", picture("red", i), captions=(f"zzz {i}",), group="xx")
               for i in range(2)]  # fmt: skip
        return Samples(samples=[*words, *few])

    row = DataSet(name="few", title="Few", task="retrieval", metric="mean_r1", make=make)
    (result,) = run(enc, [row], tmp_path)
    table = {line["language"]: line for line in result["tables"]["languages"]}
    assert set(table) == {"en", "xx"}
    assert result["figures"]["mean_r1"]["value"] == table["en"]["mean_r1"]["value"]
    assert result["chance"] == 1 / 12
    assert "1 with fewer than 10 pictures" in result["figures"]["mean_r1"]["how"]


# --- what the tables hold ---


def test_number_of_labels_counts_every_choice_of_wrong_labels():
    num, ranks = 6, torch.tensor([1, 1, 2, 3, 6])
    for k, value in number_of_labels(ranks, num):
        right = []
        for rank in ranks.tolist():  # wrong labels 0..num-2; the first rank - 1 are better
            drawn = list(itertools.combinations(range(num - 1), int(k) - 1))
            right.append(sum(all(i >= rank - 1 for i in some) for some in drawn) / len(drawn))
        assert value == pytest.approx(sum(right) / len(right))
    assert number_of_labels(ranks, num)[-1] == [6, pytest.approx(2 / 5)]


def test_number_of_labels_of_a_thousand():
    ranks = torch.randint(1, 1001, (500,))
    curve = number_of_labels(ranks, 1000)
    assert [k for k, _ in curve] == [2, 5, 10, 20, 50, 100, 200, 500, 1000]
    assert curve[0][1] == pytest.approx(float(1 - (ranks.double() - 1).mean() / 999))
    assert curve[-1][1] == pytest.approx(float((ranks == 1).double().mean()))


def test_halves_depend_on_keys_alone():
    keys = [f"picture {i}" for i in range(2000)]
    fit, test = halves(keys)
    assert sorted([*fit.tolist(), *test.tolist()]) == list(range(2000))
    assert abs(len(fit) - 1000) < 100
    fewer, _ = halves(keys[:1000])
    assert fewer.tolist() == [i for i in fit.tolist() if i < 1000]


# --- two models ---


def test_compare_counts_what_only_one_got_right(enc, tmp_path):
    rows = [colours(), pairs()]
    for name in ("a", "b"):
        run(enc, rows, tmp_path / name)
    same = compare(tmp_path / "a", tmp_path / "b")
    assert [line["p"] for line in same["sets"]] == [1, 1]
    assert same["mean"] == 0
    items = dict(np.load(tmp_path / "b/sets/colours/items.npz"))
    items["right"] = np.zeros_like(items["right"])
    np.savez(tmp_path / "b/sets/colours/items.npz", **items)
    line = compare(tmp_path / "a", tmp_path / "b")["sets"][0]
    lost = line["only_first"]
    assert line["set"] == "colours"
    assert lost == round(line["first"] * 24)
    assert line["p"] == pytest.approx(2 * 0.5**lost)
    assert line["low"] <= line["difference"] <= line["high"] < 0


def test_compare_refuses_other_protocols(enc, tmp_path):
    run(enc, [colours()], tmp_path / "a")
    run(enc, [colours(templates=None), pairs()], tmp_path / "b")
    with pytest.raises(DataError, match="the protocols differ in templates"):
        compare(tmp_path / "a", tmp_path / "b")
    with pytest.raises(DataError, match="no result of `diptych eval run`"):
        compare(tmp_path / "a", tmp_path / "nowhere")


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


@pytest.mark.slow
def test_killed_at_any_time_it_goes_on_to_the_same_bytes(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nsys.path.insert(0, sys.argv[2])\n"
        "import diptych\nfrom test_run import colours, pairs, swaps\n"
        "from diptych.eval.report import write_report\nfrom diptych.eval.run import evaluate\n"
        "print('ready', flush=True)\n"
        "enc = diptych.load('mini', precision='fp32')\n"
        "rows = [colours(60), pairs(), swaps(), colours(30, name='again')]\n"
        "list(evaluate(enc, rows, Path(sys.argv[1])))\nwrite_report(sys.argv[1])\n"
    )
    command = [sys.executable, str(script)]
    here = str(Path(__file__).parent)
    start = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole"), here], check=True, capture_output=True)
    seconds = time.monotonic() - start
    draw = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen(
            [*command, str(tmp_path / "killed"), here], stdout=subprocess.PIPE
        )
        process.stdout.readline()
        time.sleep(draw.uniform(0, seconds))
        process.kill()
        process.wait()
        process.stdout.close()
    subprocess.run([*command, str(tmp_path / "killed"), here], check=True, capture_output=True)
    left = files(tmp_path / "killed")
    whole = files(tmp_path / "whole")
    assert {name: left[name] for name in whole} == whole
