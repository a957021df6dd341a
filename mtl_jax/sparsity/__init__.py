"""Sparse networks: GrOWL, zero rows, tied rows, compression, and their measures."""

from mtl_jax.sparsity.clusters import cluster_layers as cluster_layers
from mtl_jax.sparsity.clusters import cluster_rows as cluster_rows
from mtl_jax.sparsity.clusters import row_similarity as row_similarity
from mtl_jax.sparsity.compress import compress as compress
from mtl_jax.sparsity.compress import expand as expand
from mtl_jax.sparsity.finisher import GrowlState as GrowlState
from mtl_jax.sparsity.finisher import growl as growl
from mtl_jax.sparsity.growl import growl_loss as growl_loss
from mtl_jax.sparsity.growl import growl_penalty as growl_penalty
from mtl_jax.sparsity.growl import growl_prox as growl_prox
from mtl_jax.sparsity.growl import growl_theta as growl_theta
from mtl_jax.sparsity.metrics import SparsityStats as SparsityStats
from mtl_jax.sparsity.metrics import sparsity_stats as sparsity_stats
from mtl_jax.sparsity.metrics import tree_bytes as tree_bytes
from mtl_jax.sparsity.rows import from_rows as from_rows
from mtl_jax.sparsity.rows import row_norms as row_norms
from mtl_jax.sparsity.rows import select_layers as select_layers
from mtl_jax.sparsity.rows import to_rows as to_rows
from mtl_jax.sparsity.rows import zero_rows as zero_rows
from mtl_jax.sparsity.tying import tie as tie
from mtl_jax.sparsity.tying import tie_rows as tie_rows
from mtl_jax.sparsity.tying import tied as tied
from mtl_jax.sparsity.zeros import cap_zero_rows as cap_zero_rows
from mtl_jax.sparsity.zeros import keep_zero_rows as keep_zero_rows
