"""Meta-reinforcement learning: tasks whose data are rollouts of the policy that is being adapted.

`policies` are distributions over actions, `rollouts` runs them in environments that are pure functions, `returns` turns
rewards into advantages, and `surrogates` has the losses of the policy gradient, with what the meta-gradient gets from
each. `on_policy` takes outer steps on recorded rollouts, and `trust_region` is an outer optimizer that needs them.
`gymnax` adapts that package's environments. Begin with `surrogates`. The package imports the shared modules at the top
of `jaxmaml`, `supports` and `objectives`.
"""

from jaxmaml.rl import gymnax as gymnax
from jaxmaml.rl.on_policy import collect as collect
from jaxmaml.rl.on_policy import on_policy as on_policy
from jaxmaml.rl.policies import Policy as Policy
from jaxmaml.rl.policies import categorical as categorical
from jaxmaml.rl.policies import gaussian as gaussian
from jaxmaml.rl.returns import advantages as advantages
from jaxmaml.rl.returns import generalized_advantages as generalized_advantages
from jaxmaml.rl.returns import linear_baseline as linear_baseline
from jaxmaml.rl.returns import returns_to_go as returns_to_go
from jaxmaml.rl.rollouts import Environment as Environment
from jaxmaml.rl.rollouts import Trajectories as Trajectories
from jaxmaml.rl.rollouts import mean_return as mean_return
from jaxmaml.rl.rollouts import rollout as rollout
from jaxmaml.rl.surrogates import clipped as clipped
from jaxmaml.rl.surrogates import dice as dice
from jaxmaml.rl.surrogates import lvc as lvc
from jaxmaml.rl.surrogates import reinforce as reinforce
from jaxmaml.rl.trust_region import TrustRegionState as TrustRegionState
from jaxmaml.rl.trust_region import trust_region as trust_region
