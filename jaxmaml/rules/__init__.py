"""Inner rules: how an inner gradient becomes an update of the fast parameters.

`optax_rules` makes an inner rule of any optax transformation; `learned_rates`, `kronecker` and `svgd` are the rules of
Meta-SGD and MAML++, of Meta-Curvature and of Bayesian MAML. Begin with `optax_rules`. The package imports only the
shared modules at the top of `jaxmaml`.
"""

from jaxmaml.rules.kronecker import kronecker as kronecker
from jaxmaml.rules.learned_rates import learned_rates as learned_rates
from jaxmaml.rules.optax_rules import as_inner_rule as as_inner_rule
from jaxmaml.rules.optax_rules import check_differentiable_at_zero as check_differentiable_at_zero
from jaxmaml.rules.optax_rules import check_usable as check_usable
from jaxmaml.rules.optax_rules import clip_by_global_norm as clip_by_global_norm
from jaxmaml.rules.svgd import svgd as svgd
