"""How unlike the training photographs a photograph is, compared with a plain computation and with what it promises."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tagrank.errors import InputError
from tagrank.features import familiarity
from tagrank.features.familiarity import UNKNOWN, Familiarity


def photographs(count: int, seed: int, *, kinds: int = 6) -> torch.Tensor:
    """Features around a few centres, as a backbone's are around kinds of pictures."""
    centres = torch.rand(kinds, 32, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(kinds, (count,), generator=generator)
    return centres[kind] + 0.1 * torch.randn(count, 32, generator=generator)


def distances(features: torch.Tensor, train: torch.Tensor, k: int) -> np.ndarray:  # type: ignore[type-arg]
    def unit(rows: torch.Tensor) -> np.ndarray:  # type: ignore[type-arg]
        array = rows.double().numpy()
        return array / np.linalg.norm(array, axis=1, keepdims=True)

    return np.sort(1 - unit(features) @ unit(train).T, axis=1)[:, k - 1]


@pytest.mark.parametrize(("count", "k"), [(300, 10), (4, 4)])
def test_the_share_of_validation_that_is_nearer(count: int, k: int) -> None:
    train, val, new = photographs(count, 0), photographs(50, 1), photographs(20, 2)
    found = Familiarity.fit(train, val).unlike(new)
    of_val, of_new = distances(val, train, k), distances(new, train, k)
    expected = [(of_val < d).sum() / 51 for d in of_new]
    np.testing.assert_allclose(found, expected, atol=1.01 / 51)  # float16 may let two neighbours change places


def test_one_in_a_hundred_of_its_own_kind_and_all_of_another_are_unknown() -> None:
    known = Familiarity.fit(photographs(1000, 0), photographs(999, 1))
    own, other = known.unlike(photographs(5000, 2)), known.unlike(torch.rand(200, 32))
    assert 0.004 < (own >= UNKNOWN).mean() < 0.02
    np.testing.assert_allclose(np.quantile(own, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.05)
    assert (other >= UNKNOWN).mean() > 0.95
    assert other.max() < 1


def test_with_few_validation_photographs_nothing_is_unknown() -> None:
    assert Familiarity.fit(photographs(50, 0), photographs(90, 1)).unlike(-photographs(5, 2)).max() < UNKNOWN


def test_features_of_nothing() -> None:
    known = Familiarity.fit(torch.zeros(20, 4), torch.zeros(20, 4))
    assert np.isfinite(known.unlike(torch.zeros(3, 4))).all()


def test_a_bounded_number_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(familiarity, "MEMORY", 8)
    train = photographs(100, 0)
    known = Familiarity.fit(train, photographs(30, 1))
    assert (known.memory.shape, known.distances.shape) == ((8, 32), (8,))
    expected = torch.nn.functional.normalize(train[[0, 12, 25, 37, 50, 62, 75, 87]])
    torch.testing.assert_close(known.memory.float(), expected, atol=1e-3, rtol=0)


def test_it_is_read_back(tmp_path: Path) -> None:
    known = Familiarity.fit(photographs(100, 0), photographs(50, 1))
    path = tmp_path / "familiar.safetensors"
    path.write_bytes(known.encoded())
    again = Familiarity.load(path, 32)
    np.testing.assert_array_equal(again.unlike(photographs(9, 2)), known.unlike(photographs(9, 2)))
    with pytest.raises(InputError, match=r"memory: expected float16 \[M, 31\], got \[100, 32\]"):
        Familiarity.load(path, 31)
    damaged = {
        "damaged": path.read_bytes()[:-1],
        "ascending": Familiarity(known.memory, known.distances[::-1].copy()).encoded(),
        "finite": Familiarity(known.memory * torch.inf, known.distances).encoded(),
    }
    for word, content in damaged.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"familiar\.safetensors: damaged: .*{word if word != 'damaged' else ''}"):
            Familiarity.load(path, 32)
