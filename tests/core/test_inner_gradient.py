"""Mixed-mode differentiation: exact inside its domain, and loud or exact outside it."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from jax.experimental.ode import odeint

import jaxmaml
from jaxmaml.core.inner_gradient import inner_gradient
from jaxmaml.jax_internals import trusted_module
from tests import problems

EXACT = ("mixed", "reverse")


def assert_modes_agree(objective, argument, rtol=1e-12):
    """`objective(derivative)(argument)` must have one gradient, whatever the mode."""
    mixed, reverse = (problems.flat(jax.jit(jax.grad(objective(derivative)))(argument)) for derivative in EXACT)
    np.testing.assert_allclose(mixed, reverse, rtol=rtol, atol=1e-14)
    assert np.linalg.norm(mixed) > 1e-6


def adapted_loss(learner, loss_fn, tasks, params):
    """The mean query loss after `adapt`: differentiated once, so that the rule's own derivative is what is tested."""

    def one(task):
        fast_params, _ = learner.adapt(learner.init(params), task.support)
        return loss_fn(fast_params, task.query)

    return jnp.mean(jax.vmap(one)(tasks))


def test_closed_over_tracers_are_differentiated(x64, quick_compiles):
    """A hyperparameter that reaches the inner loss through a closure gets its exact gradient."""
    tasks, params = problems.mlp_tasks(3, jnp.float64), problems.mlp_params(jnp.float64)

    def objective(derivative):
        def outer(log_penalty):
            def loss_fn(params, batch):
                decay = jnp.exp(log_penalty) * sum(jnp.sum(jnp.square(p)) for p in jax.tree.leaves(params))
                return problems.mlp_loss(params, batch) + decay

            return adapted_loss(problems.maml(loss_fn, derivative=derivative), problems.mlp_loss, tasks, params)

        return outer

    assert_modes_agree(objective, jnp.float64(-2.0))


@pytest.mark.slow
def test_the_batch_can_be_differentiated(x64, quick_compiles):
    """Data poisoning, dataset distillation: the query loss as a function of the support set."""
    tasks, params = problems.mlp_tasks(2, jnp.float64), problems.mlp_params(jnp.float64)

    def objective(derivative):
        learner = problems.maml(problems.mlp_loss, optax.adam(0.02, eps_root=1e-8), derivative=derivative)
        return lambda support: adapted_loss(learner, problems.mlp_loss, tasks._replace(support=support), params)

    assert_modes_agree(objective, tasks.support)


@pytest.mark.slow
def test_the_meta_loss_of_update_can_be_differentiated_again(x64, quick_compiles):
    """By a hyperparameter inside the loss, through the whole outer step."""
    tasks, params = problems.mlp_tasks(2, jnp.float64), problems.mlp_params(jnp.float64)

    def objective(derivative):
        def outer(scale):
            learner = problems.maml(lambda p, b: scale * problems.mlp_loss(p, b), derivative=derivative)
            state, info = learner.update(learner.init(params), tasks)
            return info.query_loss.mean() + optax.tree.norm(state.params, squared=True)

        return outer

    assert_modes_agree(objective, jnp.float64(1.5), rtol=1e-10)


@pytest.mark.parametrize("part", ["aux", "support_loss"])
def test_outer_objective_on_the_trace(x64, quick_compiles, part):
    """The auxiliary output and the support loss of the inner steps may enter an outer objective."""
    support = jax.tree.map(lambda leaf: leaf[0], problems.mlp_tasks(1, jnp.float64).support)

    def loss_fn(params, batch):
        prediction = problems.mlp(params, batch[0])
        return jnp.mean(jnp.square(prediction - batch[1])), {"size": jnp.sum(prediction**4), "count": 3}

    def objective(derivative):
        learner = problems.maml(loss_fn, derivative=derivative)

        def outer(params):
            _, trace = learner.adapt(learner.init(params), support)
            return jnp.sum(trace.aux["size"] if part == "aux" else jnp.square(trace.support_loss))

        return outer

    assert_modes_agree(objective, problems.mlp_params(jnp.float64))


@pytest.mark.slow
def test_a_second_differentiation_is_exact(x64, quick_compiles):
    """The Hessian of the meta-loss: grad of grad, and forward over reverse."""
    tasks = problems.mlp_tasks(2, jnp.float64)
    params = problems.mlp_params(jnp.float64, widths=(1, 3, 1))
    hessians = []
    for derivative in EXACT:
        learner = problems.maml(problems.mlp_loss, num_inner_steps=2, derivative=derivative)

        def objective(params, learner=learner):
            return adapted_loss(learner, problems.mlp_loss, tasks, params)

        for twice in (jax.jacrev(jax.jacrev(objective)), jax.jacfwd(jax.jacrev(objective))):
            hessians.append(problems.flat(jax.jit(twice)(params)))
    for hessian in hessians[1:]:
        np.testing.assert_allclose(hessian, hessians[0], rtol=1e-9, atol=1e-11)
    assert np.linalg.norm(hessians[0]) > 0.1


@pytest.mark.slow
def test_forward_mode_is_exact_or_refused_with_words(x64, quick_compiles):
    tasks, params = problems.mlp_tasks(2, jnp.float64), problems.mlp_params(jnp.float64)

    def derivatives(derivative, objective):
        learner = problems.maml(problems.mlp_loss, derivative=derivative)
        return problems.flat(jax.jacfwd(lambda params: objective(learner, params))(params))

    def updated(learner, params):
        return learner.update(learner.init(params), tasks)[1].query_loss.mean()

    def adapted(learner, params):
        return adapted_loss(learner, problems.mlp_loss, tasks, params)

    np.testing.assert_allclose(derivatives("mixed", updated), derivatives("reverse", updated), rtol=1e-11, atol=1e-13)
    assert np.isfinite(derivatives("reverse", adapted)).all()
    with pytest.raises(TypeError, match="forward-mode"):
        derivatives("mixed", adapted)


@jax.custom_vjp
def straight_through(x):
    return jnp.round(4 * x) / 4


straight_through.defvjp(lambda x: (straight_through(x), x), lambda x, g: (g * jnp.cosh(x),))


@jax.custom_jvp
def lying_square(x):
    return x**2


lying_square.defjvp(lambda primals, tangents: (primals[0] ** 2, jnp.cos(primals[0]) * tangents[0]))


@jax.custom_gradient
def reversed_gradient(x):
    return jnp.sin(x), lambda g: -g * x


# A rule of one's own on a function of JAX.
rounded = jax.custom_jvp(jnp.floor)
rounded.defjvp(lambda primals, tangents: (jnp.floor(primals[0]), jnp.cos(primals[0]) * tangents[0]))
rounded_by_parts = jax.custom_jvp(jnp.floor)
rounded_by_parts.defjvps(lambda tangent, ans, x: jnp.cos(x) * tangent)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [straight_through, lying_square, reversed_gradient, rounded, rounded_by_parts])
@pytest.mark.parametrize("nested", [False, True])
def test_custom_rules_fall_back_to_reverse(x64, quick_compiles, rule, nested):
    """Their "gradients" need not have symmetric derivatives: mixed mode would be silently wrong."""
    tasks, params = problems.mlp_tasks(2, jnp.float64), problems.mlp_params(jnp.float64)

    def loss_fn(params, batch):
        hidden = batch[0] @ params[0]["w"] + params[0]["b"][None]
        call = jax.jit(jax.checkpoint(rule)) if nested else rule
        hidden = jnp.sin(call(hidden) * params[1]["w"][:1] + params[1]["b"][None])
        return jnp.mean(jnp.square(hidden @ params[2]["w"] - batch[1]))

    with pytest.warns(UserWarning, match="custom derivative rule"):
        mixed = problems.meta_gradient(problems.maml(loss_fn), params, tasks)
    reverse = problems.meta_gradient(problems.maml(loss_fn, derivative="reverse"), params, tasks)
    np.testing.assert_array_equal(mixed, reverse)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_rules_of_jax_and_optax_do_not_fall_back(x64, quick_compiles):
    rng = np.random.default_rng(0)

    def loss_fn(params, batch):
        x, labels = batch
        x = jax.nn.relu(x @ params["a"])
        x = jax.nn.softplus(x) + jax.nn.gelu(x) + jax.nn.silu(x) + jax.nn.softmax(x)
        x = jax.nn.logsumexp(x[:, :, None] * params["b"][None], axis=1)
        dropped = linen.Dropout(0.5, deterministic=False).apply({}, x, rngs={"dropout": jax.random.key(0)})
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(dropped, labels))

    params = {"a": jnp.asarray(rng.normal(size=(3, 4))), "b": jnp.asarray(rng.normal(size=(4, 3)))}
    batch = (jnp.asarray(rng.normal(size=(2, 5, 3))), jnp.zeros((2, 5), int))
    mixed, reverse = (
        problems.meta_gradient(problems.maml(loss_fn, derivative=d), params, jaxmaml.Task(batch, batch)) for d in EXACT
    )
    np.testing.assert_allclose(mixed, reverse, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_a_custom_vjp_of_jax_without_a_forward_mode_falls_back(x64, quick_compiles):
    def loss_fn(params, batch):
        path = odeint(lambda y, t, p: jnp.tanh(y * p), batch, jnp.array([0.0, 1.0]), params["rate"])
        return jnp.sum(path[-1] ** 2)

    tasks = jaxmaml.Task(jnp.ones((2, 3)), 2 * jnp.ones((2, 3)))
    with pytest.warns(UserWarning, match="custom derivative rule"):
        mixed = problems.meta_gradient(problems.maml(loss_fn), {"rate": jnp.full(3, 0.5)}, tasks)
    reverse = problems.meta_gradient(problems.maml(loss_fn, derivative="reverse"), {"rate": jnp.full(3, 0.5)}, tasks)
    np.testing.assert_array_equal(mixed, reverse)


def test_neighbours_with_a_similar_name_are_not_trusted():
    site_packages = pathlib.Path(jax.__file__).parents[1]
    assert trusted_module(str(site_packages / "jax" / "_src" / "nn" / "functions.py")) is not None
    assert trusted_module(str(site_packages / "jaxopt" / "loss.py")) is None
    assert trusted_module(None) is None


@pytest.mark.slow
def test_stop_gradient_inside_the_loss(x64, quick_compiles):
    def loss_fn(params, batch):
        target = jax.lax.stop_gradient(problems.mlp(params, batch[0] + 1.0))
        return jnp.mean(jnp.square(problems.mlp(params, batch[0]) - target))

    tasks, params = problems.mlp_tasks(2, jnp.float64), problems.mlp_params(jnp.float64)
    mixed, reverse = (problems.meta_gradient(problems.maml(loss_fn, derivative=d), params, tasks) for d in EXACT)
    np.testing.assert_allclose(mixed, reverse, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_memory_is_nearly_flat_in_inner_steps():
    x = jax.ShapeDtypeStruct((2, 4096, 1), jnp.float32)
    tasks = jaxmaml.Task((x, x), (x, x))

    def temporary(num_inner_steps, **execution):
        learner = problems.maml(problems.mlp_loss, num_inner_steps=num_inner_steps, chunk_size=1, **execution)
        state = jax.eval_shape(learner.init, problems.mlp_params())
        return jax.jit(learner.update).lower(state, tasks).compile().memory_analysis().temp_size_in_bytes

    assert temporary(50) < 1.2 * temporary(5)
    assert temporary(50) < 0.1 * temporary(50, derivative="reverse", remat="none")


def test_the_derivative_of_the_batch_is_not_computed_unasked():
    """A cotangent for the inputs costs a matmul that nobody uses."""

    def flops(with_batch):
        def objective(params, batch):
            _, _, grads = inner_gradient(lambda p, b: (problems.mlp_loss(p, b), ()), "mixed")(params, batch)
            return optax.tree.norm(grads, squared=True)

        x = jnp.ones((64, 8))
        batch, params = (x, x[:, :1]), problems.mlp_params(widths=(8, 8, 1))
        gradient = jax.jit(jax.grad(objective, argnums=(0, 1) if with_batch else 0))
        return gradient.lower(params, batch).compile().cost_analysis()["flops"]

    assert flops(with_batch=False) < 0.9 * flops(with_batch=True)


def test_one_inner_step_recomputes_nothing():
    """By default the derivative of a single inner step keeps 9 of the 11 matmuls of each layer from the gradient."""

    def matmuls(**options):
        learner = problems.maml(problems.mlp_loss, num_inner_steps=1, chunk_size=1, **options)
        return program(learner).count("dot_general")

    def program(learner):
        return str(jax.make_jaxpr(learner.update)(learner.init(problems.mlp_params()), problems.mlp_tasks(1)))

    layers = len(problems.mlp_params())
    assert matmuls(remat="none") == matmuls()
    # Not that of the first layer's input, which has no gradient.
    assert matmuls(remat="steps") - matmuls() >= 2 * layers - 1
