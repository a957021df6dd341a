"""QM9: graphs from SMILES, units, splits, made-up molecules, and damaged files."""

import sys

import numpy as np
import pytest

from mtl_jax.data import load_qm9, qm9_files, qm9_synthetic
from mtl_jax.data.molecule_graphs import NODE_FEATURES, molecular_graphs, parse_smiles
from mtl_jax.data.qm9_files import ATOM_ENERGIES, MEV, TARGETS

# Molecule 1 of QM9, methane, and a made-up neighbour.
METHANE = np.array(
    [
        [-0.0127, 1.0858, 0.0080],
        [0.0022, -0.0060, 0.0020],
        [1.0117, 1.4638, 0.0003],
        [-0.5408, 1.4475, -0.8766],
        [-0.5238, 1.4379, 0.9064],
    ],
    np.float32,
)
OWN_NAMES = ["mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "u0", "u298", "h298"]
OWN_NAMES += ["g298", "cv"]
METHANE_TARGETS = [0, 13.21, -0.3877, 0.1171, 0.5048, 35.3641, 0.044749]
METHANE_TARGETS += [-40.47893, -40.476062, -40.475117, -40.498597, 6.469]


def fields(count=6, **changes):
    """Arrays of a file with methane, stretched a little more each time."""
    stretch = 1 + 0.01 * np.arange(count)
    arrays = {
        "n_atoms": np.full(count, 5, np.uint8),
        "z": np.tile(np.array([6, 1, 1, 1, 1], np.uint8), count),
        "pos": (stretch[:, None, None] * METHANE).reshape(-1, 3).astype(np.float32),
        "targets": stretch[:, None] * np.array(METHANE_TARGETS)
        + 0.01 * (stretch[:, None] - 1),
        "target_names": np.array(OWN_NAMES),
        "smiles_utf8": np.frombuffer(b"\n".join([b"C"] * count), np.uint8),
    }
    return arrays | changes


def write(folder, **arrays):
    (folder / "qm9").mkdir()
    np.savez(folder / "qm9" / "qm9.npz", **arrays)
    return folder


def graph_of(text, numbers, positions):
    numbers = np.array([numbers], np.uint8)
    return molecular_graphs(numbers, np.array([positions], np.float32), [text])


DRAW = qm9_synthetic.molecules


def few_molecules(count, rng):
    return DRAW(min(count, 130), rng)


# -- graphs


@pytest.mark.parametrize(
    ("text", "atoms", "bonds"),
    [
        ("CC(=O)N", [6, 6, 8, 7], [(0, 1, 1), (1, 2, 2), (1, 3, 1)]),
        (
            "C1CC1C#N",
            [6] * 4 + [7],
            [(0, 1, 1), (1, 2, 1), (0, 2, 1), (2, 3, 1), (3, 4, 3)],
        ),
        ("[C-]#[NH+]", [6, 7], [(0, 1, 3)]),
        (
            "c1cc[nH]c1",
            [6, 6, 6, 7, 6],
            [(0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 4, 4), (0, 4, 4)],
        ),
        ("C=1.O1", [6, 8], [(0, 1, 2)]),
        ("C%10CC%10", [6] * 3, [(0, 1, 1), (1, 2, 1), (0, 2, 1)]),
    ],
)
def test_smiles(text, atoms, bonds):
    found, pairs = parse_smiles(text)
    assert found == atoms and sorted(pairs) == sorted(bonds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CS", "has the element S, expected only H, C, N, O, F"),
        ("C1CC", "a ring or branch with one end"),
        ("C(C", "a ring or branch with one end"),
        ("CC)", "a ring or branch with one end"),
    ],
)
def test_bad_smiles(text, message):
    with pytest.raises(ValueError, match=message):
        parse_smiles(text)


def flat_ring(size, length=1.4):
    angle = 2 * np.pi * np.arange(size) / size
    radius = length / (2 * np.sin(np.pi / size))
    return radius * np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)


@pytest.mark.parametrize(
    ("text", "numbers", "aromatic"),
    [
        ("C1=CC=CC=C1", [6] * 6, True),  # benzene
        ("C1=CNC=C1", [6, 6, 7, 6, 6], True),  # pyrrole: two electrons of nitrogen
        ("C1=COC=C1", [6, 6, 8, 6, 6], True),
        ("C1=CCC=C1", [6] * 5, False),  # cyclopentadiene
        ("C1=CC=CCC1", [6] * 6, False),
        ("C1=CNC=CN1", [6, 6, 7, 6, 6, 7], False),  # eight electrons
    ],
)
def test_aromatic_rings(text, numbers, aromatic):
    graph = graph_of(text, numbers, flat_ring(len(numbers)))
    assert (graph.nodes[0, :, 6] == aromatic).all()
    assert (graph.bonds == 4).sum() == (2 * len(numbers) if aromatic else 0)


def test_aromatic_systems_with_neighbours():
    # 2-pyridone: the carbonyl carbon lends none of six electrons; and its own oxygen is
    # not in the ring.
    ring = flat_ring(6)
    outside = ring[1:2] * (1 + 1.2 / 1.4)
    graph = graph_of(
        "N1C(=O)C=CC=C1", [7, 6, 8, 6, 6, 6, 6], np.insert(ring, 2, outside, 0)
    )
    assert graph.nodes[0, :, 6].tolist() == [1, 1, 0, 1, 1, 1, 1]
    assert graph.bonds[0, 1, 2] == 2
    # Two rings whose ten electrons are shared: indolizine's bonds, drawn loosely.
    text = "C1=CC2=CC=CN2C=C1"
    atoms, _ = parse_smiles(text)
    graph = graph_of(text, atoms, 0.01 * np.arange(27).reshape(9, 3))
    assert graph.nodes[0, :, 6].all() and graph.unmatched == 0


def test_features_of_acetamide():
    # Heavy atoms need not come first, and hydrogens belong to the nearest one.
    numbers = [6, 1, 1, 1, 6, 8, 7, 1, 1, 0]
    heavy = {0: [0, 0, 0], 4: [1.5, 0, 0], 5: [2.1, 1.05, 0], 6: [2.2, -1.15, 0]}
    places = np.zeros((10, 3))
    for k, place in heavy.items():
        places[k] = place
    for k, (owner, shift) in {
        1: (0, [-0.4, 1, 0]),
        2: (0, [-0.4, -0.5, 0.9]),
        3: (0, [-0.4, -0.5, -0.9]),
        7: (6, [1, 0, 0]),
        8: (6, [-0.5, -0.9, 0]),
    }.items():
        places[k] = places[owner] + shift
    graph = graph_of("CC(=O)N", numbers, places)
    columns = dict(zip(NODE_FEATURES, graph.nodes[0].T.tolist(), strict=True))
    assert columns["atomic number"] == numbers
    assert columns["C"] == [1, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert columns["hydrogens"] == [3, 0, 0, 0, 0, 0, 2, 0, 0, 0]
    assert columns["sp3"] == [1] + [0] * 9
    assert columns["sp2"] == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0]  # nitrogen beside C=O, too
    bonds = graph.bonds[0]
    np.testing.assert_array_equal(bonds, bonds.T)
    assert bonds[4, 5] == 2 and bonds[0, 1] == bonds[6, 7] == 1
    assert (bonds > 0).sum() == 2 * 8 and not bonds[9].any()
    # Written the other way round the order is turned; other atoms have no match.
    turned = graph_of("NC(=O)C", numbers, places)
    assert turned.unmatched == 1 and turned.bonds[0, 4, 5] == 1
    assert graph_of("CO", [8, 6], [[0, 0, 0], [1.4, 0, 0]]).unmatched == 0


# -- units and splits


def test_energies_of_atoms_are_those_of_ideal_gases():
    """u, h and g follow from u0: heat 3/2 kT, then kT, then Sackur and Tetrode."""
    kelvin, k = 298.15, 3.166811563e-6  # Hartree / K
    kt = k * kelvin
    masses = np.array([1.00783, 12, 14.00307, 15.99491, 18.99840])  # commonest isotopes
    spins = np.array([2, 3, 4, 3, 2])
    u0, u, h, g = (np.array(ATOM_ENERGIES[name]) for name in ("u0", "u", "h", "g"))
    np.testing.assert_allclose(u - u0, 1.5 * kt, atol=2e-6)
    np.testing.assert_allclose(h - u, kt, atol=2e-6)
    wave = 6.62607015e-34 / np.sqrt(
        2 * np.pi * masses * 1.66053907e-27 * 1.380649e-23 * kelvin
    )
    volume = 1.380649e-23 * kelvin / 101_325
    entropy = k * (np.log(volume / wave**3 * spins) + 2.5)
    np.testing.assert_allclose(h - kelvin * entropy, g, atol=3e-6)


def test_file_in_published_units(tmp_path):
    data = load_qm9(write(tmp_path, **fields()), sizes=(3, 1, 2))
    assert data.source.startswith("3 + 1 + 2 of 6 molecules of QM9 (train")
    assert data.task_names == tuple(TARGETS) and len(data.units) == 11
    inputs = data.train.inputs
    assert inputs.nodes.shape == (3, 5, 11) and inputs.nodes.dtype == np.int8
    assert inputs.bonds.shape == (3, 5, 5) and inputs.mask.all()
    raw = qm9_files.read_npz(tmp_path).targets[0]
    # The published atomisation energy of methane, -395.9999 kcal/mol.
    assert raw[6] == pytest.approx(-395.999594594 * 43.364104, abs=0.5)
    np.testing.assert_allclose(
        raw[[0, 1, 2, 4, 10]], [0, 13.21, -0.3877 * MEV, 35.3641, 6.469]
    )
    assert raw[5] == pytest.approx(0.044749 * MEV)


def test_targets_are_standardised_over_the_training_split(monkeypatch):
    monkeypatch.setattr(qm9_synthetic, "molecules", few_molecules)
    data = load_qm9(sizes=(60, 20, 0), max_atoms=14)
    assert len(data.test.targets) == 0
    np.testing.assert_allclose(data.train.targets.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(data.train.targets.std(0), 1, atol=1e-5)
    assert np.abs(data.validation.targets.mean(0)).max() > 0.01
    both = load_qm9(sizes=(60, 0, 20), max_atoms=14)
    # The same draw, cut elsewhere: validation there is the test here.
    np.testing.assert_array_equal(both.test.targets, data.validation.targets)
    np.testing.assert_array_equal(both.mean, data.mean)
    other = load_qm9(sizes=(60, 0, 20), max_atoms=14, seed=1)
    assert not np.array_equal(other.test.targets, both.test.targets)
    mask = data.train.inputs.mask
    assert mask.shape[1] <= 14 and (np.diff(mask.astype(int), axis=1) <= 0).all()
    assert not data.train.inputs.nodes[~mask].any()


def test_default_is_synthetic_and_says_so():
    data = load_qm9()
    assert data.source.startswith("320 + 80 + 80 SYNTHETIC molecules")
    assert "pass data_dir=" in data.source and "does not fit" not in data.source
    nodes, bonds, positions, mask = data.train.inputs
    assert positions.dtype == np.float32
    valence = np.array([0, 1, 2, 3, 1.5])[bonds].sum(-1)[mask]
    numbers = nodes[..., 5][mask]
    plain = ~nodes[..., 6].astype(bool)[mask]
    for number, expected in ((1, 1), (6, 4), (7, 3), (8, 2), (9, 1)):
        assert (valence[(numbers == number) & plain] == expected).all()
    # A linear rule on composition finds the energies, but not the dipole moments.
    counts = [np.c_[s.inputs.nodes.sum(1), np.ones(len(s.targets))] for s in data[:3:2]]
    rule, *_ = np.linalg.lstsq(counts[0], data.train.targets)
    left = np.square(counts[1] @ rule - data.test.targets).mean(0)
    assert left[6] < 0.05 and left[0] > 0.2


# -- tensorflow-datasets


def example(k=0):
    values = dict(zip(OWN_NAMES, METHANE_TARGETS, strict=True))
    row = {
        name: np.float32(values[name])
        for name in ("mu", "alpha", "homo", "lumo", "r2", "zpve")
    }
    row |= {"Cv": np.float32(6.469), "SMILES": b"C"}
    for name in ("U0", "U", "H", "G"):
        row[name] = np.float32(-40)
        row[f"{name}_atomization"] = np.float32(-0.631067 - 0.001 * k)
    row["charges"] = np.pad([6, 1, 1, 1, 1], (0, 24))
    row["positions"] = np.pad(METHANE, ((0, 24), (0, 0)))
    return row


def test_examples_of_tensorflow_datasets(tmp_path):
    found = qm9_files.from_examples([example(), example(1)])
    assert found.numbers.shape == (2, 29) and found.smiles == ["C", "C"]
    expected = qm9_files.read_npz(write(tmp_path, **fields(1)))
    np.testing.assert_allclose(found.targets[0, :7], expected.targets[0, :7], rtol=1e-5)
    for name in ("SMILES", "U_atomization"):
        row = example()
        del row[name]
        with pytest.raises(ValueError, match=f"have no {name}, expected charges"):
            qm9_files.from_examples([row])


def test_missing_tensorflow_datasets_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        ModuleNotFoundError, match="source='tfds' needs tensorflow-datasets"
    ):
        load_qm9(source="tfds")


# -- damaged files and bad arguments


def wrong_target():
    targets = fields()["targets"].copy()
    targets[3, 8] = np.nan
    return targets


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"smiles_utf8": None},
            "has no smiles_utf8, expected the fields n_atoms, z, pos",
        ),
        (
            {"z": np.tile(np.uint8([6, 1, 1, 16, 1]), 6)},
            "molecule 1 of .* an atom of number 16",
        ),
        ({"targets": wrong_target()}, "the target 'u' of molecule 4 of .* is nan"),
        (
            {"target_names": np.array([*OWN_NAMES[:-1], "c"])},
            "has no target cv, expected mu",
        ),
        (
            {"n_atoms": np.full(6, 40, np.uint8)},
            "6 molecules with 240 atoms, but 6 SMILES",
        ),
        (
            {"pos": np.full((30, 3), np.inf, np.float32)},
            "a position of molecule 1 .* not finite",
        ),
    ],
)
def test_damaged_files_are_explained(tmp_path, changes, message):
    arrays = {k: v for k, v in (fields() | changes).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        load_qm9(write(tmp_path, **arrays), sizes=(3, 1, 2))


def test_missing_and_cut_files_are_explained(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"QM9 was not found in .* put qm9\.npz"
    ):
        load_qm9(tmp_path)
    path = write(tmp_path, **fields()) / "qm9" / "qm9.npz"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="no complete npz file"):
        load_qm9(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "web"}, "source must be one of"),
        ({"source": "npz"}, "source='npz' needs data_dir="),
        ({"sizes": (1, 0, 0)}, r"sizes must be three counts .* got \(1, 0, 0\)"),
        ({"max_atoms": 0}, "max_atoms must be at least 1 or None, got 0"),
        ({"max_atoms": 6}, "do not fit: there are .* molecules of at most 6 atoms"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, monkeypatch):
    monkeypatch.setattr(qm9_synthetic, "molecules", few_molecules)
    with pytest.raises(ValueError, match=message):
        load_qm9(**arguments)


# -- the real set


def test_same_targets_for_all_are_refused(tmp_path):
    arrays = fields()
    arrays["targets"][:] = arrays["targets"][:1]
    with pytest.raises(
        ValueError, match="the target 'mu' is the same for all 3 training"
    ):
        load_qm9(write(tmp_path, **arrays), sizes=(3, 1, 2))


@pytest.mark.slow
def test_real_molecules(data_dir):
    if not (data_dir / "qm9").is_dir():
        pytest.skip(f"{data_dir} has no qm9")
    data = load_qm9(data_dir, sizes=(3000, 500, 500))
    assert "of 130,831 molecules of QM9" in data.source
    # Means and deviations of the whole set, as PyTorch Geometric users know them.
    known = {
        "mu": (2.67, 1.50),
        "alpha": (75.3, 8.2),
        "homo": (-6530, 600),
        "u0": (-76_116, 10_324),
    }
    for k, name in enumerate(data.task_names):
        if name in known:
            mean, std = known[name]
            assert data.mean[k] == pytest.approx(mean, abs=0.1 * std)
            assert data.std[k] == pytest.approx(std, rel=0.1)
    nodes, bonds, _, mask = data.train.inputs
    valence = np.array([0, 1, 2, 3, 1.5])[bonds].sum(-1)[mask]
    numbers = nodes[..., 5][mask]
    plain = nodes[..., 6][mask] == 0
    for number, expected in ((1, 1), (6, 4), (7, 3), (8, 2), (9, 1)):
        chosen = valence[(numbers == number) & plain]
        assert (chosen == expected).mean() > 0.98
