"""The family's recipes on sinusoids and on Omniglot, for `step_counts --algorithms`."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax

import jaxmaml
from benchmarks.adaptation.algorithms import Algorithm, Family
from jaxmaml.training.samplers import Sampler


def sinusoid(key: chex.PRNGKey) -> Family:
    """Five inner steps of 0.01 on 5 points wherever the algorithm has no step size of its own.

    Inner gradients are clipped: on five points a step of 0.01 can overshoot, and one such task would dominate the
    meta-gradient.
    """
    model, x = jaxmaml.nn.MLP(), jnp.zeros((1, 1))
    params = model.init(key, x)

    def blind(apply):
        """Without the amplitude and phase that inputs may include for an oracle."""
        return jaxmaml.mean_squared_error(lambda params, inputs: apply(params, inputs[:, :1]))

    loss_fn, clipped = blind(model.apply), jaxmaml.clip_by_global_norm(10.0)
    adam = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(1e-3))
    sgd = optax.chain(clipped, optax.sgd(0.01))
    context, warp = jaxmaml.nn.MLP(num_context=5), jaxmaml.nn.MLP(warp=True)
    # Widely different particles: with the paper's standard deviation of 0.01 they would all be alike.
    wide = jax.tree.map(lambda leaf: 30.0 * leaf, jax.vmap(lambda key: model.init(key, x))(jax.random.split(key, 10)))

    def mixture(params, inputs):
        return jnp.mean(jnp.asarray(jax.vmap(model.apply, in_axes=(0, None))(params, inputs)), axis=0)

    def of(
        factory,
        *args,
        recipe,
        loss_fn=loss_fn,
        params=params,
        evaluation_loss=loss_fn,
        untrained=False,
        outer_steps=None,
        **axes,
    ):
        options = {"num_inner_steps": 5} | axes
        make = lambda num_steps: factory(loss_fn, *args, **options)  # noqa: E731
        return Algorithm(make, params, evaluation_loss, recipe, untrained=untrained, outer_steps=outer_steps)

    context_loss, warp_loss = blind(context.apply), blind(warp.apply)
    five = "5 steps of 0.01"
    algorithms = {
        "maml": of(jaxmaml.maml, sgd, adam, recipe=five),
        "fomaml": of(jaxmaml.fomaml, sgd, adam, recipe=five),
        "reptile": Algorithm(
            lambda num_steps: jaxmaml.reptile(
                loss_fn,
                optax.chain(clipped, optax.sgd(0.02)),
                optax.sgd(optax.linear_schedule(1.0, 0.0, num_steps)),
                num_inner_steps=32,
            ),
            params,
            loss_fn,
            "32 steps of 0.02, outer step from 1 to 0",
        ),
        "anil": of(jaxmaml.anil, sgd, adam, head="Dense_2", recipe=f"{five} of the last layer"),
        "boil": of(jaxmaml.boil, sgd, adam, head="Dense_2", recipe=f"{five} of all but the last layer"),
        "meta_sgd": of(jaxmaml.meta_sgd, 0.01, adam, transform=clipped, recipe="5 steps, rates from 0.01"),
        "maml_plus_plus": Algorithm(
            lambda num_steps: jaxmaml.maml_plus_plus(
                loss_fn,
                0.01,
                1e-3,
                num_inner_steps=5,
                num_outer_steps=num_steps,
                normalisation=None,
                transform=clipped,
                clip=1.0,
            ),
            params,
            loss_fn,
            "5 steps, rates from 0.01 a tensor and step; multi-step loss in the first tenth, first order in the first "
            "half, cosine, outer gradients clipped to 1 an entry",
        ),
        "imaml": Algorithm(
            lambda num_steps: jaxmaml.imaml(
                loss_fn,
                optax.chain(clipped, optax.sgd(0.005)),
                # An implicit gradient does not limit the curvature, so that inner steps can overshoot with a constant
                # outer step size ends in inner steps that overshoot.
                optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-3, num_steps))),
                num_inner_steps=32,
                strength=20.0,
                max_solver_steps=10,
            ),
            params,
            loss_fn,
            "32 steps of 0.005, strength 20, 10 steps of conjugate gradients; cosine, outer gradients clipped to 1",
            outer_steps=6000,
        ),
        "cavia": of(
            jaxmaml.cavia,
            optax.sgd(0.3),
            adam,
            context="context",
            loss_fn=context_loss,
            evaluation_loss=context_loss,
            params=context.init(key, x),
            recipe="5 steps of 0.3 of 5 context parameters",
        ),
        "meta_curvature": of(jaxmaml.meta_curvature, sgd, adam, recipe=five),
        "warp_maml": of(
            jaxmaml.warp_maml,
            sgd,
            adam,
            warp=lambda path: "warp" in path,
            loss_fn=warp_loss,
            evaluation_loss=warp_loss,
            params=warp.init(key, x),
            recipe=f"{five}, a linear warp layer after each hidden one",
        ),
        "es_maml": of(jaxmaml.es_maml, sgd, adam, std=0.03, recipe=f"{five}, 8 pairs a task, std 0.03"),
        "bayesian_maml": of(
            jaxmaml.bayesian_maml,
            0.05,
            adam,
            params=wide,
            evaluation_loss=blind(mixture),
            repulsion=0.1,
            outer_steps=4000,
            recipe="10 particles, 5 SVGD steps of 0.05, repulsion 0.1, leader 1 step; evaluated by their mean",
        ),
        "joint_training": of(jaxmaml.joint_training, sgd, adam, recipe="fine-tuned by steps of 0.01"),
        "linear_probe": of(
            jaxmaml.joint_training,
            sgd,
            adam,
            adapted="Dense_2",
            recipe="joint training, steps of 0.01 of the last layer",
        ),
        "from_scratch": of(
            jaxmaml.maml, sgd, adam, untrained=True, recipe="steps of 0.01 from a random initialisation"
        ),
    }
    # Training tasks have 5 points, as new tasks have: rates learned on more points would be too long.
    return Family(algorithms, jaxmaml.tasks.sinusoid(5, 10), num_tasks=25, outer_steps=15_000, steps_per_dispatch=1000)


def omniglot(key: chex.PRNGKey, sample: Sampler, num_ways: int) -> Family:
    """One inner step of 2.0 on the mean cross-entropy (0.4 on the sum over ways), unless the recipe says otherwise.

    The outer step size falls from five times the papers' along a cosine: training is short.
    """
    statistics = "batch statistics, transductive"
    image = jnp.zeros((1, 28, 28, 1))
    outer_step_size, sgd = 5e-3, optax.sgd(2.0)
    model = jaxmaml.nn.Conv4.omniglot(num_ways)
    scaled = jaxmaml.nn.Conv4.omniglot(num_ways, use_scale=True)
    loss_fn, scaled_loss = (jaxmaml.cross_entropy(m.apply) for m in (model, scaled))
    params = model.init(key, image)

    def of(factory, inner, *, recipe, untrained=False, **axes):
        options = {"num_inner_steps": 1} | axes

        def make(num_steps):
            outer = optax.adam(optax.cosine_decay_schedule(outer_step_size, num_steps, alpha=0.01))
            return factory(loss_fn, inner, outer, **options)

        return Algorithm(make, params, loss_fn, recipe, statistics, untrained)

    algorithms = {
        "maml": of(jaxmaml.maml, sgd, recipe="1 step of 2.0"),
        "fomaml": of(jaxmaml.fomaml, optax.sgd(0.5), recipe="1 step of 0.5"),
        "reptile": Algorithm(
            lambda num_steps: jaxmaml.reptile(
                loss_fn,
                optax.adam(1e-3, b1=0.0),
                optax.sgd(optax.linear_schedule(1.0, 0.0, num_steps)),
                num_inner_steps=5,
            ),
            params,
            loss_fn,
            "5 steps of Adam, 1e-3 without momentum, outer step from 1 to 0; 1 shot, where the paper trains on 10",
            statistics,
        ),
        "anil": of(jaxmaml.anil, sgd, head="Dense_0", recipe="1 step of 2.0 of the head"),
        "boil": of(jaxmaml.boil, sgd, head="Dense_0", recipe="1 step of 2.0 of all but the head"),
        "meta_sgd": of(jaxmaml.meta_sgd, 0.5, recipe="1 step, rates from 0.5"),
        "maml_plus_plus": Algorithm(
            lambda num_steps: jaxmaml.maml_plus_plus(
                scaled_loss,
                0.5,
                outer_step_size,
                num_inner_steps=3,
                num_outer_steps=num_steps,
                normalisation=lambda path: "BatchNorm" in path,
            ),
            scaled.init(key, image),
            scaled_loss,
            "3 steps, rates from 0.5 a tensor and step; multi-step loss in the first tenth, first order in the first "
            "half, cosine",
            "batch statistics of each step, transductive; scales and shifts of each step, not adapted",
        ),
        "proto_maml": of(
            jaxmaml.proto_maml,
            optax.sgd(0.1),
            embed=functools.partial(model.apply, head=False),
            head="Dense_0",
            recipe="1 step of 0.1 from prototypes; step 0 is the nearest centroid",
        ),
        "from_scratch": of(jaxmaml.maml, sgd, untrained=True, recipe="steps of 2.0 from a random initialisation"),
    }
    return Family(algorithms, sample, num_tasks=32, outer_steps=1000, steps_per_dispatch=100)
