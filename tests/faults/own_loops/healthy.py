"""Loops without a mistake in them, of kinds that the trainer does not know."""

from __future__ import annotations

import math
import random
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, StudentT

import monitor
from tests.faults.own_loops.parts import (
    CLASSES,
    PIXELS,
    Attach,
    Loop,
    batch,
    descend,
    fit,
    perceptron,
    training_set,
    validation_loss,
)


class VariationalAutoencoder(nn.Module):
    """float32[B, 64] to logits float32[B, 64], and mean and log variance float32[B, 16] of the code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = perceptron(PIXELS, 128, 32), perceptron(16, 128, PIXELS)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(images).chunk(2, dim=-1)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.decoder(code), mean, log_variance


def variational_autoencoder(attach: Attach) -> None:
    """Kingma and Welling 2013, https://arxiv.org/abs/1312.6114: a loss that is no cross-entropy of the output alone."""
    model = VariationalAutoencoder()

    def loss_of(step: int) -> Tensor:
        images, _ = batch()
        logits, mean, log_variance = model(images)
        rebuilt = F.binary_cross_entropy_with_logits(logits, images, reduction="none").sum(1)
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
        return (rebuilt + divergence).mean()

    fit(attach, model, torch.optim.Adam(model.parameters(), lr=1e-3), 800, loss_of)


def generative_adversarial(attach: Attach) -> None:
    """Two losses that raise each other; that of the generator is told."""
    generator = nn.Sequential(nn.Linear(16, 128), nn.LeakyReLU(0.2), nn.Linear(128, PIXELS), nn.Sigmoid())
    critic = nn.Sequential(nn.Linear(PIXELS, 128), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(128, 1))
    model = nn.ModuleDict({"generator": generator, "critic": critic})
    of_generator, of_critic = (
        torch.optim.Adam(part.parameters(), lr=2e-4, betas=(0.5, 0.999)) for part in model.values()
    )
    ones = torch.ones(64, 1)
    with attach(model, [of_generator, of_critic]) as mon:
        for step in range(1, 1001):
            images, _ = batch()
            drawn = generator(torch.randn(64, 16))
            on_images = F.binary_cross_entropy_with_logits(critic(images), 0.9 * ones)
            on_drawn = F.binary_cross_entropy_with_logits(critic(drawn.detach()), 0 * ones)
            descend(of_critic, on_images + on_drawn)
            loss = F.binary_cross_entropy_with_logits(critic(drawn), ones)
            descend(of_generator, loss)
            mon.step(loss=loss, batch_id=step)
            mon.log({"critic_loss": (on_images + on_drawn).detach()})


def wasserstein_gan(attach: Attach) -> None:
    """With a penalty on gradients (Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028): three steps of the critic
    for one of the generator, a gradient of a gradient, a loss that may be negative."""
    generator = perceptron(8, 64, PIXELS)
    critic = perceptron(PIXELS, 64, 1, activation=nn.LeakyReLU)
    model = nn.ModuleDict({"generator": generator, "critic": critic})
    of_generator, of_critic = (
        torch.optim.Adam(part.parameters(), lr=1e-4, betas=(0.0, 0.9)) for part in model.values()
    )
    with attach(model, [of_generator, of_critic]) as mon:
        for _ in range(500):
            for _ in range(3):
                images, _ = batch()
                drawn = generator(torch.randn(64, 8)).detach()
                share = torch.rand(64, 1)
                between = (share * images + (1 - share) * drawn).requires_grad_()
                (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
                penalty = (slope.norm(dim=1) - 1).square().mean()
                loss = critic(drawn).mean() - critic(images).mean() + 10 * penalty
                descend(of_critic, loss)
            descend(of_generator, -critic(generator(torch.randn(64, 8))).mean())
            mon.step(loss=loss)


class CartPole:
    """A pole on a cart that is pushed left or right (Barto, Sutton and Anderson 1983): 1 for each step it stands."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.state: list[float] = []
        self.reset()

    def reset(self) -> None:
        self.state = [self.rng.uniform(-0.05, 0.05) for _ in range(4)]

    def push(self, right: bool) -> bool:
        """Whether it fell."""
        place, speed, angle, turn = self.state
        push = ((10.0 if right else -10.0) + 0.05 * turn**2 * math.sin(angle)) / 1.1
        lever = 0.5 * (4 / 3 - 0.1 * math.cos(angle) ** 2 / 1.1)
        bend = (9.8 * math.sin(angle) - math.cos(angle) * push) / lever
        pull = push - 0.05 * bend * math.cos(angle) / 1.1
        self.state = [place + 0.02 * speed, speed + 0.02 * pull, angle + 0.02 * turn, turn + 0.02 * bend]
        return abs(self.state[0]) > 2.4 or abs(self.state[2]) > 0.21


def deep_q(attach: Attach) -> None:
    """Cart and pole, a memory, and a target that is renewed every hundred steps, at which the loss jumps."""
    rng = random.Random(torch.initial_seed())
    model = perceptron(4, 64, 64, 2)
    target = deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    pole, memory, stood, last = CartPole(rng), [], 0, 0
    with attach(model, optimizer) as mon:
        for step in range(1, 1701):
            before = pole.state
            with torch.no_grad():
                best = int(model(torch.tensor(before)).argmax())
            action = rng.randrange(2) if rng.random() < max(0.05, 1 - step / 1000) else best
            fell = pole.push(right=bool(action))
            memory.append((before, action, pole.state, float(fell)))
            stood += 1
            if fell or stood >= 300:
                pole.reset()
                last, stood = stood, 0
            if step <= 200:
                continue
            states, actions, following, ends = map(torch.tensor, zip(*rng.sample(memory, 64), strict=True))
            with torch.no_grad():
                wanted = 1 + 0.99 * (1 - ends) * target(following).amax(1)
            loss = F.smooth_l1_loss(model(states).gather(1, actions[:, None])[:, 0], wanted)
            descend(optimizer, loss)
            mon.step(loss=loss)
            mon.log({"return": last})
            if step % 100 == 0:
                target.load_state_dict(model.state_dict())


def proximal_policy(attach: Attach) -> None:
    """PPO on a bandit with contexts: the batch of 128 is gone over four times, the loss goes about zero."""
    model = perceptron(8, 64, 5, activation=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    best_of = torch.randn(8, 4)
    with attach(model, optimizer) as mon:
        for _ in range(80):
            states = torch.randn(128, 8)
            with torch.no_grad():
                answer = model(states)
                policy = Categorical(logits=answer[:, :4])
                actions = policy.sample()
                old = policy.log_prob(actions)
                rewards = ((states @ best_of).argmax(1) == actions).float()
                advantages = rewards - answer[:, 4]
                advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-6)
            for index in (index for _ in range(4) for index in torch.randperm(128).split(32)):
                answer = model(states[index])
                policy = Categorical(logits=answer[:, :4])
                ratio = (policy.log_prob(actions[index]) - old[index]).exp()
                gain = torch.min(ratio * advantages[index], ratio.clamp(0.8, 1.2) * advantages[index]).mean()
                value_loss = F.mse_loss(answer[:, 4], rewards[index])
                loss = -gain + 0.5 * value_loss - 0.01 * policy.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                mon.step(loss=loss)
                mon.log({"reward": rewards.mean(), "value_loss": value_loss.detach()})


def reinforce(attach: Attach) -> None:
    """The policy gradient of the same bandit (Williams 1992): the loss says nothing of how well it goes."""
    model = perceptron(8, 32, 4, activation=nn.Tanh)
    best_of = torch.randn(8, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with attach(model, optimizer) as mon:
        for _ in range(800):
            states = torch.randn(64, 8)
            policy = Categorical(logits=model(states))
            actions = policy.sample()
            rewards = ((states @ best_of).argmax(1) == actions).float()
            gain = policy.log_prob(actions) * (rewards - rewards.mean())
            loss = -(gain + 0.01 * policy.entropy()).mean()
            descend(optimizer, loss)
            mon.step(loss=loss)
            mon.log({"reward": rewards.mean()})


def diffusion(attach: Attach) -> None:
    """The noise of an image is told from the noisy image and the time (Ho et al. 2020)."""
    model = perceptron(PIXELS + 1, 256, 256, PIXELS, activation=nn.SiLU)

    def loss_of(step: int) -> Tensor:
        images, _ = batch()
        time, noise = torch.rand(64, 1), torch.randn(64, PIXELS)
        angle = time * math.pi / 2
        noisy = angle.cos() * (2 * images - 1) + angle.sin() * noise
        return F.mse_loss(model(torch.cat([noisy, time], dim=1)), noise)

    fit(attach, model, torch.optim.AdamW(model.parameters(), lr=1e-3), 800, loss_of, max_norm=1.0)


def contrastive(attach: Attach) -> None:
    """Two noisy views of an image are to find each other among 64."""
    model = perceptron(PIXELS, 128, 32)

    def loss_of(step: int) -> Tensor:
        images, _ = batch()
        one, other = (F.normalize(model(images + 0.2 * torch.randn_like(images)), dim=1) for _ in range(2))
        likeness = one @ other.T / 0.2
        return (F.cross_entropy(likeness, torch.arange(64)) + F.cross_entropy(likeness.T, torch.arange(64))) / 2

    fit(attach, model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 800, loss_of)


def bootstrapped(attach: Attach) -> None:
    """BYOL (Grill et al. 2020): the target is a running mean of the network itself."""
    encoder = nn.Sequential(nn.Linear(PIXELS, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 32))
    predictor, target = perceptron(32, 32, 32), deepcopy(encoder)
    model = nn.ModuleList([encoder, predictor])

    def loss_of(step: int) -> Tensor:
        images, _ = batch(128)
        one, other = (images + 0.2 * torch.randn_like(images) for _ in range(2))
        with torch.no_grad():
            wanted_of_one, wanted_of_other = target(other), target(one)
        likeness = F.cosine_similarity(predictor(encoder(one)), wanted_of_one)
        return 2 - (likeness + F.cosine_similarity(predictor(encoder(other)), wanted_of_other)).mean()

    def follow(mon: monitor.Monitor, step: int) -> None:
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), encoder.parameters(), strict=True):
                slow.lerp_(fast, 0.01)

    fit(attach, model, torch.optim.Adam(model.parameters(), lr=1e-3), 700, loss_of, after=follow)


def normalizing_flow(attach: Attach) -> None:
    """Six affine couplings (Dinh et al. 2016) on two half moons: a density's loss, which falls below zero."""
    model = nn.ModuleList(perceptron(1, 64, 64, 2) for _ in range(6))

    def loss_of(step: int) -> Tensor:
        angle, upper = torch.rand(256) * math.pi, torch.rand(256) < 0.5
        moon = torch.stack([angle.cos(), angle.sin()])
        kept, changed = 0.3 * torch.where(upper, moon, torch.tensor([[1.0], [0.5]]) - moon) + 0.01 * torch.randn(2, 256)
        log_volume = torch.zeros(256)
        for coupling in model:
            log_scale, shift = coupling(kept[:, None]).unbind(1)
            log_scale = torch.tanh(log_scale)
            kept, changed = changed * log_scale.exp() + shift, kept
            log_volume = log_volume + log_scale
        return ((kept**2 + changed**2) / 2 + math.log(2 * math.pi) - log_volume).mean()

    fit(attach, model, torch.optim.Adam(model.parameters(), lr=1e-3), 1000, loss_of)


def heavy_tails(attach: Attach) -> None:
    """Squared errors of targets with noise of Student's t, 2.5 degrees of freedom: losses a hundred times as large."""
    model = perceptron(20, 64, 1, activation=nn.GELU)
    inputs = torch.randn(10_000, 20)
    targets = inputs @ torch.randn(20) + StudentT(2.5).sample((10_000,))

    def loss_of(step: int) -> Tensor:
        index = torch.randint(0, len(inputs), (32,))
        return F.mse_loss(model(inputs[index])[:, 0], targets[index])

    fit(attach, model, torch.optim.Adam(model.parameters(), lr=3e-3), 1500, loss_of)


def second_order(attach: Attach) -> None:
    """L-BFGS with a line search: each step has a closure that is called again and again, and soon nothing to gain."""
    model = nn.Linear(PIXELS, CLASSES)
    images, labels = training_set()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=5, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels) + 1e-3 * model.weight.square().sum()
        loss.backward()
        return loss

    with attach(model, optimizer) as mon:
        for step in range(1, 61):
            mon.step(loss=optimizer.step(closure), batch_id=step)


def fine_tuning(attach: Attach) -> None:
    """Two layers are frozen for five epochs and then trained too, at a tenth of the head's rate."""
    model = perceptron(PIXELS, 64, 64, CLASSES)
    images, labels = training_set()
    trunk, head = model[:4], model[4]
    trunk.requires_grad_(False)
    groups = [{"params": head.parameters(), "lr": 1e-3}, {"params": trunk.parameters(), "lr": 1e-4}]
    optimizer = torch.optim.AdamW(groups)
    with attach(model, optimizer) as mon:
        for epoch in range(20):
            if epoch == 5:
                trunk.requires_grad_(True)
            for index in torch.randperm(len(images)).split(32):
                loss = F.cross_entropy(model(images[index]), labels[index])
                descend(optimizer, loss)
                mon.step(loss=loss)
            mon.log({"val_loss": validation_loss(model)})


class SortingTransformer(nn.Module):
    """int64[B, 16] to float32[B, 16, 32], normalised after each block as in the first transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 64)
        self.position = nn.Parameter(0.02 * torch.randn(16, 64))
        self.blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2)
        self.head = nn.Linear(64, 32)

    def forward(self, signs: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(signs) + self.position))


def post_norm_transformer(attach: Attach) -> None:
    """Sorting, with the rate of Vaswani et al. 2017: the optimizer's own is 1, and the schedule does the rest."""
    model = SortingTransformer()
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0, betas=(0.9, 0.98), eps=1e-9)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * 64**-0.5 * min((step + 1) ** -0.5, (step + 1) * 200**-1.5)
    )

    def loss_of(step: int) -> Tensor:
        signs = torch.randint(0, 32, (32, 16))
        return F.cross_entropy(model(signs).flatten(0, 1), signs.sort(1).values.flatten(), label_smoothing=0.1)

    fit(attach, model, optimizer, 500, loss_of, schedule=schedule)


class Reader(nn.Module):
    """float32[B, T, F] to float32[B, T, C]: a GRU that reads in both directions, or in one, and a head."""

    def __init__(self, features: int, width: int, classes: int, *, both_ways: bool = False) -> None:
        super().__init__()
        self.memory = nn.GRU(features, width, batch_first=True, bidirectional=both_ways)
        self.head = nn.Linear(2 * width if both_ways else width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.memory(inputs)[0])


def connectionist(attach: Attach) -> None:
    """CTC (Graves et al. 2006): three digits are read row by row, and no one says where one ends."""
    model = Reader(8, 64, CLASSES + 1, both_ways=True)

    def loss_of(step: int) -> Tensor:
        images, labels = batch(48)
        likelihood = model(images.view(16, 24, 8)).log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(likelihood, labels.view(16, 3) + 1, torch.full((16,), 24), torch.full((16,), 3))

    fit(attach, model, torch.optim.AdamW(model.parameters(), lr=2e-3), 500, loss_of, max_norm=5.0)


def sequences_of_any_length(attach: Attach) -> None:
    """A GRU that counts in strides of one to three; a batch has 5 to 59 places."""
    model = nn.Sequential(nn.Embedding(20, 32), Reader(32, 64, 20))

    def loss_of(step: int) -> Tensor:
        places = torch.arange(int(torch.randint(6, 61, ())))
        signs = (torch.randint(0, 20, (16, 1)) + places * torch.randint(1, 4, (16, 1))) % 20
        return F.cross_entropy(model(signs[:, :-1]).flatten(0, 1), signs[:, 1:].flatten())

    fit(attach, model, torch.optim.Adam(model.parameters(), lr=3e-3), 500, loss_of, max_norm=1.0)


def distillation(attach: Attach) -> None:
    """A linear student of a teacher with a temperature (Hinton et al. 2015): a small model whose weights grow fast."""
    teacher, model = perceptron(PIXELS, 64, CLASSES), nn.Linear(PIXELS, CLASSES)
    of_teacher = torch.optim.Adam(teacher.parameters(), lr=3e-3)
    for _ in range(300):
        images, labels = batch()
        descend(of_teacher, F.cross_entropy(teacher(images), labels))

    def loss_of(step: int) -> Tensor:
        images, _ = batch()
        with torch.no_grad():
            taught = (teacher(images) / 4).softmax(1)
        return 16 * F.kl_div((model(images) / 4).log_softmax(1), taught, reduction="batchmean")

    fit(attach, model, torch.optim.Adam(model.parameters(), lr=3e-3), 800, loss_of)


class Tastes(nn.Module):
    """int64[B] of users and int64[B] of films to logits float32[B]."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.films = nn.Embedding(500, 16, sparse=True), nn.Embedding(300, 16, sparse=True)

    def forward(self, users: Tensor, films: Tensor) -> Tensor:
        return (self.users(users) * self.films(films)).sum(1)


def sparse_embeddings(attach: Attach) -> None:
    """Users and films: gradients are sparse, and most rows have none in a step."""
    model = Tastes()
    of_users, of_films = torch.randn(500, 4), torch.randn(300, 4)

    def loss_of(step: int) -> Tensor:
        users, films = torch.randint(0, 500, (64,)), torch.randint(0, 300, (64,))
        liked = (of_users[users] * of_films[films]).sum(1) > 0
        return F.binary_cross_entropy_with_logits(model(users, films), liked.float())

    fit(attach, model, torch.optim.SparseAdam(list(model.parameters()), lr=1e-2), 1500, loss_of)


def sharpness_aware(attach: Attach) -> None:
    """SAM (Foret et al. 2020): weights are moved uphill, and back again, before each step."""
    model = perceptron(PIXELS, 64, CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with attach(model, optimizer) as mon:
        for step in range(1, 501):
            images, labels = batch()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
            reach = 0.05 / nn.utils.get_total_norm(gradients)
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.add_(gradient * reach)
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.sub_(gradient * reach)
            optimizer.step()
            optimizer.zero_grad()
            mon.step(loss=loss, batch_id=step)


def cyclic_rate(attach: Attach) -> None:
    """The rate goes up two hundred times and down again, every two hundred steps (Smith 2015)."""
    model = perceptron(PIXELS, 64, CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CyclicLR(optimizer, 1e-3, 0.2, step_size_up=100)

    def loss_of(step: int) -> Tensor:
        images, labels = batch()
        return F.cross_entropy(model(images), labels)

    fit(attach, model, optimizer, 1000, loss_of, schedule=schedule)


def weights_in_bf16(attach: Attach) -> None:
    """Weights, inputs and gradients have eight bits."""
    model = perceptron(PIXELS, 128, CLASSES).bfloat16()

    def loss_of(step: int) -> Tensor:
        images, labels = batch()
        return F.cross_entropy(model(images.bfloat16()).float(), labels)

    fit(attach, model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 600, loss_of)


def accumulated_and_scaled(attach: Attach) -> None:
    """Three micro-batches a step, autocast, a scale that grows, and clipping after it is taken off."""
    model = nn.Sequential(nn.Linear(PIXELS, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, CLASSES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scaler = torch.amp.GradScaler("cpu", growth_interval=50)
    with attach(model, optimizer, scaler=scaler) as mon:
        for _ in range(500):
            loss = torch.zeros(())
            for _ in range(3):
                images, labels = batch(16)
                with torch.autocast("cpu", torch.bfloat16):
                    share = F.cross_entropy(model(images), labels) / 3
                scaler.scale(share).backward()
                loss += share.detach()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            mon.step(loss=loss)


def physics_informed(attach: Attach) -> None:
    """u' = -u with u(0) = 1: the loss is of a derivative, and falls by orders of magnitude, up and down."""
    model = perceptron(1, 32, 32, 1, activation=nn.Tanh)

    def loss_of(step: int) -> Tensor:
        time = torch.rand(64, 1, requires_grad=True)
        value = model(time)
        (slope,) = torch.autograd.grad(value.sum(), time, create_graph=True)
        return (slope + value).square().mean() + 10 * (model(torch.zeros(1, 1)) - 1).square().mean()

    fit(attach, model, torch.optim.Adam(model.parameters(), lr=1e-3), 1500, loss_of)


def batch_of_one(attach: Attach) -> None:
    """Single images under Adagrad: a loss that jumps from step to step."""
    model = perceptron(PIXELS, 64, CLASSES)

    def loss_of(step: int) -> Tensor:
        image, label = batch(1)
        return F.cross_entropy(model(image), label)

    fit(attach, model, torch.optim.Adagrad(model.parameters(), lr=0.05), 1500, loss_of)


class TwoTasks(nn.Module):
    """float32[B, 64] to logits float32[B, 10] of the digit and float32[B] of its ink."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(PIXELS, 64), nn.ReLU())
        self.digit, self.ink = nn.Linear(64, CLASSES), nn.Linear(64, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(images)
        return self.digit(hidden), self.ink(hidden)[:, 0]


def alternating_tasks(attach: Attach) -> None:
    """Every second step has another loss, and trains another head."""
    model = TwoTasks()

    def loss_of(step: int) -> Tensor:
        images, labels = batch(32)
        logits, ink = model(images)
        return F.cross_entropy(logits, labels) if step % 2 else F.mse_loss(ink, images.sum(1) / 10)

    fit(attach, model, torch.optim.NAdam(model.parameters(), lr=1e-3), 800, loss_of)


HEALTHY: tuple[Loop, ...] = (
    Loop("vae", variational_autoencoder),
    Loop("gan", generative_adversarial),
    Loop("wgan-gp", wasserstein_gan),
    Loop("dqn", deep_q),
    Loop("ppo", proximal_policy),
    Loop("reinforce", reinforce),
    Loop("diffusion", diffusion),
    Loop("contrastive", contrastive),
    Loop("byol", bootstrapped),
    Loop("flow", normalizing_flow),
    Loop("heavy-tails", heavy_tails),
    Loop("l-bfgs", second_order),
    Loop("fine-tuning", fine_tuning),
    Loop("post-norm", post_norm_transformer),
    Loop("ctc", connectionist),
    Loop("any-length", sequences_of_any_length),
    Loop("distillation", distillation),
    Loop("sparse", sparse_embeddings),
    Loop("sam", sharpness_aware),
    Loop("cyclic-rate", cyclic_rate),
    Loop("bf16-weights", weights_in_bf16),
    Loop("scaled", accumulated_and_scaled),
    Loop("pinn", physics_informed),
    Loop("batch-of-one", batch_of_one),
    Loop("alternating", alternating_tasks),
)
