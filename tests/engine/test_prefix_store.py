"""Prefixes that come back after a restart, and prompts that stay: both change speed alone, never an answer."""

from __future__ import annotations

import random
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import write_tiny

from cpuinfer import LLM, SamplingParams
from cpuinfer.engine.outputs import CompletionOutput
from cpuinfer.graph.dtypes import KVType

SAMPLED = SamplingParams(seed=3, max_tokens=8, ignore_eos=True, logprobs=2)
PREFIX = [3 + i * 7 % 200 for i in range(70)]  # four full pages and six tokens
SUFFIX = ".kvpage"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPUINFER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def opened(model: Path, store: Path | None, **options: Any) -> LLM:
    return LLM(model, prefix_store=store, **{"threads": 1, "token_budget": 24, **options})


def answer(llm: LLM, tail: list[int]) -> tuple[list[CompletionOutput], int]:
    """The completion of PREFIX and a tail, and how many tokens of it were not computed."""
    (output,) = llm.generate(PREFIX + tail, SAMPLED)
    return output.outputs, output.num_cached_tokens


def files(store: Path) -> list[Path]:
    return sorted(store.glob(f"*{SUFFIX}"))


def quiet(llm: LLM) -> bool:
    scheduler = llm._runner.engine.scheduler
    return not scheduler.has_work and scheduler.pool.n_free == scheduler.pool.n_pages


@pytest.mark.parametrize("device", ["native", "reference"])
@pytest.mark.parametrize("kv_type", KVType)
def test_after_a_restart_the_answer_is_the_same(
    tiny_model: Path, tmp_path: Path, kv_type: KVType, device: str
) -> None:
    want, _ = answer(opened(tiny_model, None, kv_type=kv_type, device=device), [9, 8])
    with opened(tiny_model, tmp_path, kv_type=kv_type, device=device) as first:
        assert answer(first, [5])[1] == 0
        assert len(files(tmp_path)) == 0, "written at the end"
    assert len(files(tmp_path)) == 4
    with opened(tiny_model, tmp_path, kv_type=kv_type, device=device) as second:
        assert answer(second, [9, 8]) == (want, 64)
        assert answer(second, [9, 8])[1] == 64
        assert quiet(second)
    assert len(files(tmp_path)) == 4, "the fifth page was never full of known tokens twice"


def test_devices_of_one_numerics_share_and_the_reference_does_not(
    tiny_model: Path, tmp_path: Path
) -> None:
    with opened(tiny_model, tmp_path, isa="scalar") as first:
        want, _ = answer(first, [1])
    assert answer(opened(tiny_model, tmp_path), [1]) == (want, 64)
    assert answer(opened(tiny_model, tmp_path, device="reference"), [1])[1] == 0


def test_what_changes_bits_is_another_key(tiny_model: Path, tmp_path: Path) -> None:
    with opened(tiny_model, tmp_path / "s") as first:
        answer(first, [])
    others = [
        opened(tiny_model, tmp_path / "s", kv_type="bf16"),
        opened(tiny_model, tmp_path / "s", max_context=128),
        opened(write_tiny(tmp_path / "other.gguf", seed=1), tmp_path / "s"),
    ]
    for llm in others:
        want, _ = answer(llm, [])
        llm.close()
        again = opened(Path(llm.packed.path), tmp_path / "s", **vars_of(llm))
        assert answer(again, [])[0] == want
    assert answer(opened(tiny_model, tmp_path / "s"), [])[1] == 64


def vars_of(llm: LLM) -> dict[str, Any]:
    return {"kv_type": llm.config.kv_type, "max_context": llm.config.max_context}


def test_prefixes_are_kept_on_request(tiny_model: Path, tmp_path: Path) -> None:
    llm = opened(tiny_model, tmp_path)
    answer(llm, [1])
    assert llm.save_prefixes() == 4
    answer(llm, [2] * 10)
    assert llm.save_prefixes() == 1 and llm.save_prefixes() == 0
    with pytest.raises(ValueError, match="this engine has none"):
        opened(tiny_model, None).save_prefixes()


def test_logits_of_the_prompt_are_computed_all_the_same(tiny_model: Path, tmp_path: Path) -> None:
    with opened(tiny_model, tmp_path) as first:
        want = first.logits(PREFIX).tobytes()
    second = opened(tiny_model, tmp_path)
    params = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=1)
    (output,) = second.generate(PREFIX, params)
    assert output.num_cached_tokens == 0 and len(output.prompt_logprobs or []) == len(PREFIX)
    assert second.logits(PREFIX).tobytes() == want


def test_a_damaged_store_gives_the_same_answers(tiny_model: Path, tmp_path: Path) -> None:
    """Bits flipped, files cut, emptied, exchanged and taken away at random: a shorter hit, and a warning for each."""
    sound, broken = tmp_path / "sound", tmp_path / "broken"
    with opened(tiny_model, sound) as first:
        want, _ = answer(first, [4])
    size = files(sound)[0].stat().st_size
    llm = opened(tiny_model, None)
    rng = random.Random(5)
    hits = set()
    for _ in range(60):
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(sound, broken)
        for path in rng.sample(files(broken), rng.randint(1, 3)):
            raw = bytearray(path.read_bytes())
            kind = rng.randrange(5)
            if kind == 0:
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del raw[rng.randrange(size) :]
            elif kind == 2:
                raw = bytearray(rng.choice(files(sound)).read_bytes())
            elif kind == 3:
                raw = bytearray(rng.randbytes(size))
            path.unlink()
            if kind != 4:
                path.write_bytes(raw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            llm = opened(tiny_model, broken)
            got, hit = answer(llm, [4])
            assert got == want and quiet(llm)
            assert answer(llm, [4]) == (want, 64)
            for _ in range(5):  # what lies behind a page that is gone is looked at later
                llm.close()
                llm = opened(tiny_model, broken)
                got, mended = answer(llm, [4])
                assert got == want
                if mended == 64:
                    break
            assert mended == 64
        hits.add(hit)
    assert len(hits) > 2


def test_a_store_that_cannot_be_written_is_a_warning(tiny_model: Path, tmp_path: Path) -> None:
    llm = opened(tiny_model, tmp_path / "store")
    answer(llm, [])
    shutil.rmtree(tmp_path / "store")
    with pytest.warns(UserWarning, match="prefixes are not kept"):
        llm.close()


def test_options_that_cannot_be(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prefix_caching off"):
        opened(tiny_model, tmp_path, prefix_caching=False)
    with pytest.raises(ValueError, match="prefix_store: expected a folder"):
        opened(tiny_model, 7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prefix_store_bytes"):
        opened(tiny_model, tmp_path, prefix_store_bytes=0)


def small(model: Path, pages: int = 12) -> LLM:
    one = opened(model, None).executable.kv.image_bytes
    return opened(model, None, kv_memory_bytes=pages * one, max_sequences=4)


def test_a_pinned_prompt_is_never_computed_again(tiny_model: Path) -> None:
    want, _ = answer(opened(tiny_model, None), [5])
    llm = small(tiny_model)
    pin = llm.pin(PREFIX)
    assert (pin.n_tokens, pin.n_pages) == (70, 4)
    for seed in range(8):  # fill and empty the pool with others
        others = [[seed + i] * 60 for i in range(3)]
        llm.generate(others, SAMPLED)
    assert answer(llm, [5]) == (want, 64)
    pool = llm._runner.engine.scheduler.pool
    assert pool.n_free == pool.n_pages - 4
    llm.unpin(pin)
    assert quiet(llm)
    llm.generate([[seed] * 100 for seed in range(12)], SAMPLED)
    assert answer(llm, [5]) == (want, 0)
    llm.unpin(pin)
    assert quiet(llm)


def test_pins_under_pressure_from_many_threads(tiny_model: Path) -> None:
    llm = small(tiny_model)
    want, _ = answer(opened(tiny_model, None), [5])
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(4):
                if number == 0:
                    llm.unpin(llm.pin(PREFIX[:40]))
                elif number == 1:
                    assert answer(llm, [5])[0] == want
                else:
                    llm.generate([[number + turn] * 50] * 2, SAMPLED)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed and quiet(llm)


def test_pinning_too_much_says_the_numbers(tiny_model: Path) -> None:
    llm = small(tiny_model)
    llm.pin([1] * 100)
    with pytest.raises(
        ValueError, match="96 tokens keep 6 of 12 KV pages, 6 are pinned .* leaves 0, .* need 1"
    ):
        llm.pin([2] * 96)
    with pytest.raises(ValueError, match=r"97 tokens do not fit .* 96 tokens \(96 more are pinned"):
        llm.pin([2] * 97)
    with pytest.raises(ValueError, match="15 tokens fill no KV page of 16"):
        llm.pin([2] * 15)
    with pytest.raises(ValueError, match="prefix_caching is off"):
        opened(tiny_model, None, prefix_caching=False).pin(PREFIX)
    (output,) = llm.generate([3] * 50, SamplingParams(temperature=0, ignore_eos=True))
    assert len(output.outputs[0].token_ids) == 96 + 1 - 50, "the limit is what pins leave"
    longest = llm._request([4] * 30, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    two_pages = llm._request([5] * 32, SamplingParams(temperature=0, max_tokens=1))

    def pin_beside_it() -> None:
        """On the engine's thread: no step comes between."""
        engine = llm._runner.engine
        engine.add(longest)
        try:
            engine.pin(two_pages)
        finally:
            engine.abort(longest)

    with pytest.raises(ValueError, match="that leaves 4, and requests in flight may need 5"):
        llm._runner.call(pin_beside_it)
    llm.pin([5] * 32)


def test_a_system_prompt_is_pinned_as_messages(tiny_model: Path) -> None:
    llm = opened(tiny_model, None)
    system = {"role": "system", "content": "You answer in verse, briefly, and never twice."}
    pin = llm.pin([system])
    (output,) = [llm.chat([system, {"role": "user", "content": "hello"}], SAMPLED)]
    assert output.num_cached_tokens == 16 * pin.n_pages > 0


def test_a_pin_whose_step_fails_leaves_nothing(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = small(tiny_model)

    def fail(batch: object) -> None:
        raise OSError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(llm.executable, "run", fail)
        with pytest.raises(OSError, match="broken"):
            llm.pin(PREFIX)
    assert quiet(llm) and llm._runner.engine.scheduler.pins.n_pages == 0
    assert llm.pin(PREFIX).pages


def test_pinned_pages_are_kept_in_the_store(tiny_model: Path, tmp_path: Path) -> None:
    with opened(tiny_model, tmp_path) as first:
        first.pin(PREFIX)
    assert len(files(tmp_path)) == 4
    second = opened(tiny_model, tmp_path)
    assert second.pin(PREFIX).pages
    assert answer(second, [1])[1] == 64
