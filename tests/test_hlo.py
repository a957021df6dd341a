"""The reader of compiled programs, on programs whose collectives are known."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mtl_jax.sharding import make_mesh
from tests.hlo import Collective, collectives

ROWS = ((0, 1), (2, 3), (4, 5), (6, 7))
COLUMNS = ((0, 2, 4, 6), (1, 3, 5, 7))


def text_of(function, *args, out=None):
    jitted = jax.jit(function, out_shardings=out)
    return jitted.lower(*args).compile().as_text()


def placed(mesh, *spec, shape=(8, 4)):
    return jax.device_put(jnp.ones(shape), NamedSharding(mesh, P(*spec)))


@pytest.mark.parametrize(
    ("spec", "groups"), [((None, "model"), ROWS), (("data",), COLUMNS)]
)
def test_an_all_gather(spec, groups):
    mesh = make_mesh(model=2)
    x = placed(mesh, *spec)
    found = collectives(text_of(lambda x: 2 * x, x, out=NamedSharding(mesh, P())))
    assert len(found) == 1
    assert found[0]._replace(groups=()) == Collective(
        "all-gather", ((8, 4),), 4 * 32, 1, ()
    )
    assert set(map(frozenset, found[0].groups)) == set(map(frozenset, groups))


def test_all_reduces_of_several_arrays():
    mesh = make_mesh(model=2)
    x, y = (
        placed(mesh, "data"),
        placed(mesh, "data", shape=(16, 3)).astype(jnp.bfloat16),
    )

    def sums(x, y):
        return x.sum(0), jnp.max(y.astype(jnp.float32), 0)

    found = collectives(text_of(sums, x, y, out=NamedSharding(mesh, P())))
    assert {c.op for c in found} == {"all-reduce"}
    assert sorted(shape for c in found for shape in c.shapes) == [(3,), (4,)]
    assert sum(c.bytes for c in found) == 4 * (3 + 4)
    assert all(
        set(map(frozenset, c.groups)) == set(map(frozenset, COLUMNS)) for c in found
    )


def test_loops_multiply():
    mesh = make_mesh()
    x = placed(mesh, "data", shape=(8, 3))

    def counted(x):
        return lax.map(lambda row: jnp.square(x * row[None]).sum(0), jnp.eye(3))

    def open_ended(x):
        return lax.while_loop(
            lambda s: s[0] < 9, lambda s: (s[1].sum(), s[1] / 2), (x.sum(), x)
        )

    out = NamedSharding(mesh, P())
    found = collectives(text_of(counted, x, out=out))
    assert 3 in {c.executions for c in found if c.op == "all-reduce"}
    assert None in {c.executions for c in collectives(text_of(open_ended, x))}


def test_a_permutation():
    mesh = make_mesh(jax.devices()[:4])
    shift = jax.shard_map(
        lambda x: lax.ppermute(x, "data", [(0, 1), (1, 2)]),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P("data"),
    )
    found = collectives(text_of(shift, placed(mesh, "data")))
    assert found == [
        Collective("collective-permute", ((2, 4),), 32, 1, ((0, 1), (1, 2)))
    ]


ASYNCHRONOUS = """HloModule step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%wrapped (p: bf16[4,2]) -> bf16[1,2] {
  %p = bf16[4,2]{1,0} parameter(0)
  ROOT %rs = bf16[1,2]{1,0:T(8,128)} reduce-scatter(%p), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, to_apply=%add
}

ENTRY %main (a: f32[4], b: bf16[4,2]) -> (f32[4], f32[8], bf16[1,2]) {
  %a = f32[4]{0} parameter(0)
  %b = bf16[4,2]{1,0} parameter(1)
  %ar = f32[4]{0} all-reduce-start(f32[4]{0} %a), replica_groups={{0,1},{2,3}}, to_apply=%add
  %ar-done = f32[4]{0} all-reduce-done(f32[4]{0} %ar)
  %ag = (f32[4]{0}, f32[8]{0}) all-gather-start(%ar-done), replica_groups=[2,2]<=[4], dimensions={0}
  %ag-done = f32[8]{0} all-gather-done(%ag)
  %rs-start = ((bf16[4,2]{1,0}), bf16[1,2]{1,0}, s32[]) async-start(%b), calls=%wrapped
  %rs-done = bf16[1,2]{1,0} async-done(%rs-start), calls=%wrapped
  ROOT %out = (f32[4]{0}, f32[8]{0}, bf16[1,2]{1,0}) tuple(%ar-done, %ag-done, %rs-done)
}
"""  # noqa: E501


def test_asynchronous_pairs_count_once():
    """As accelerators' compilers write them."""
    reduce, gather, scatter = collectives(ASYNCHRONOUS)
    assert reduce == Collective("all-reduce", ((4,),), 16, 1, ((0, 1), (2, 3)))
    assert gather == Collective("all-gather", ((8,),), 32, 1, ((0, 1), (2, 3)))
    assert scatter == Collective("reduce-scatter", ((1, 2),), 4, 1, COLUMNS)


def test_what_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("HloModule empty")
    with pytest.raises(ValueError, match="cannot read the device groups"):
        collectives(ASYNCHRONOUS.replace("[2,2]<=[4]", "new_notation"))
    with pytest.raises(ValueError, match="the text holds 3"):
        collectives(ASYNCHRONOUS.replace("calls=%wrapped", "runs=%wrapped"))
