"""Golden values of the methods beside G2RL and GRPO, in decimals of 50 digits from the papers' formulas.

    python make_method_golden.py > common/tests/golden/golden_methods.json

`evol` (arXiv 2509.15194), `dapo` (2503.14476: overlong penalty, token mean), `dr_grpo` (2503.20783: centred advantages,
constant weights), `gspo` (2507.18071: sequence ratio; the gradients are checked here against central differences),
`mixed` (a policy loss next to the imitation of given solutions). Needs nothing but Python.
"""

import json
import random
from decimal import Decimal, getcontext

getcontext().prec = 50
D = Decimal
EPS = D("1e-8")  # beside the norm of an embedding
EPS_STD = D("1e-6")  # beside the standard deviation
rng = random.Random(7)


def numbers(values):
    return [float(v) for v in values]


def mean(values):
    return sum(values, D(0)) / len(values)


def clamp(x, low, high):
    return max(low, min(high, x))


def standardised(rewards):
    m = mean(rewards)
    if max(rewards) == min(rewards):
        return [D(0)] * len(rewards)
    deviation = mean([(r - m) ** 2 for r in rewards]).sqrt()
    return [(r - m) / (deviation + EPS_STD) for r in rewards]


def eighths(low, high, count):
    """Multiples of 1/8: exact in every format."""
    return [D(rng.randint(low * 8, high * 8)) / 8 for _ in range(count)]


# --- EVOL-RL -------------------------------------------------------------------------------------------------


def evol_rewards(embeddings, correct, answered):
    units = []
    for e in embeddings:
        norm = sum((x * x for x in e), D(0)).sqrt() + EPS
        units.append([x / norm for x in e])
    similar = lambda i, j: clamp(sum((a * b for a, b in zip(units[i], units[j])), D(0)), D(0), D(1))
    valid = [i for i in range(len(embeddings)) if answered[i]]
    rewards = [D(-1)] * len(embeddings)
    for label in (True, False):
        members = [i for i in valid if correct[i] == label]
        u = {}
        for i in members:
            others = [j for j in valid if j != i]
            own = [j for j in members if j != i] or others
            within = mean([similar(i, j) for j in own]) if own else D(0)
            nearest = max([similar(i, j) for j in others], default=D(0))
            u[i] = 1 - (within / 2 + nearest / 2)
        for i in members:
            span = max(u.values()) - min(u.values())
            if len(members) == 1:
                stretched = D(1)
            elif span <= D("1e-6"):
                stretched = D(1) / 2
            else:
                stretched = (u[i] - min(u.values())) / span
            rewards[i] = (D(1) / 2 if label else D(-1)) + stretched / 2
    return rewards


def evol_case(name, correct, answered, embeddings=None):
    embeddings = embeddings or [eighths(-2, 2, 6) for _ in correct]
    rewards = evol_rewards(embeddings, correct, answered)
    return {
        "name": name,
        "embeddings": [numbers(e) for e in embeddings],
        "correct": correct,
        "answered": answered,
        "rewards": numbers(rewards),
        "advantages": numbers(standardised(rewards)),
    }


T, F = True, False
same = [D(1), D(2), D(2)]
evol = [
    evol_case("both classes", [T, T, T, F, F, F, F, T], [T] * 8),
    evol_case("one right", [T, F, F, F, F], [T] * 5),
    evol_case("one wrong", [T, T, F, T], [T] * 4),
    evol_case("all right", [T] * 6, [T] * 6),
    evol_case("some without an answer", [T, F, F, T, F, F], [T, T, F, T, F, T]),
    evol_case("identical", [T, T, F, F], [T] * 4, [same] * 4),
    evol_case("opposites", [T, T, T], [T] * 3, [same, [-x for x in same], [D(0), D(1), D(0)]]),
    evol_case("nobody answers", [F] * 3, [F] * 3),
]

# --- DAPO ----------------------------------------------------------------------------------------------------


def dapo_case(lengths, rewards, longest, cache):
    free = longest - cache
    penalties = []
    for length in lengths:
        if length <= free:
            penalties.append(D(0))
        elif length <= longest:
            penalties.append((D(free) - length) / cache)
        else:
            penalties.append(D(-1))
    shaped = [D(r) + p for r, p in zip(rewards, penalties)]
    total = sum(lengths)
    return {
        "lengths": lengths,
        "base_rewards": rewards,
        "max_tokens": longest,
        "cache_tokens": cache,
        "rewards": numbers(shaped),
        "advantages": numbers(standardised(shaped)),
        "token_weights": numbers([D(1) / total] * len(lengths)),
    }


dapo = [
    dapo_case([10, 16384, 17000, 20480, 21000], [1, 1, -1, 1, -1], 20480, 4096),
    dapo_case([24, 20, 19, 23], [-1, 1, -1, -1], 24, 5),
    dapo_case([7, 100, 55], [1, -1, 1], 100, 100),
]

# --- Dr. GRPO ------------------------------------------------------------------------------------------------


def dr_grpo_case(rewards, lengths, longest):
    rewards = [D(r) for r in rewards]
    advantages = [r - mean(rewards) for r in rewards]
    return {
        "base_rewards": numbers(rewards),
        "lengths": lengths,
        "max_tokens": longest,
        "advantages": numbers(advantages),
        "token_weights": numbers([D(1) / (len(lengths) * D(longest))] * len(lengths)),
    }


dr_grpo = [dr_grpo_case([1, -1, -1, -1, 1, -1, -1], [3, 50, 12, 7, 9, 1, 20], 64), dr_grpo_case([1, 0, 1], [5, 6, 7], 8)]

# --- GSPO ----------------------------------------------------------------------------------------------------


def gspo_loss(policy, behavior, advantages, low, high):
    """The loss, and for each sequence its ratio and whether the clip took its gradient."""
    loss, ratios, clipped = D(0), [], []
    for p, b, a in zip(policy, behavior, advantages):
        s = (sum((x - y for x, y in zip(p, b)), D(0)) / len(p)).exp()
        plain, bounded = s * a, clamp(s, 1 - low, 1 + high) * a
        loss -= min(plain, bounded) / len(policy)
        ratios.append(s)
        clipped.append(bounded < plain)
    return loss, ratios, clipped


def gspo_case(shift, low, high):
    lengths = [1, 4, 7, 3]
    behavior = [[-D(rng.randint(1, 400)) / 128 for _ in range(n)] for n in lengths]
    policy = [[b + shift * D(rng.randint(-8, 8)) / 8 for b in row] for row in behavior]
    advantages = [D(3) / 2, -D(1), D(1) / 4, -D(3) / 4]
    loss, ratios, clipped = gspo_loss(policy, behavior, advantages, low, high)
    gradients = []
    for i, row in enumerate(policy):
        # d loss / d log p_it = -s_i A_i / (sequences x length), 0 where the clip holds.
        g = D(0) if clipped[i] else -ratios[i] * advantages[i] / (len(policy) * len(row))
        step = D("1e-15")
        for t in range(len(row)):
            moved = [list(r) for r in policy]
            moved[i][t] += step
            up = gspo_loss(moved, behavior, advantages, low, high)[0]
            moved[i][t] -= 2 * step
            down = gspo_loss(moved, behavior, advantages, low, high)[0]
            assert abs((up - down) / (2 * step) - g) < D("1e-20"), (i, t)
        gradients.append(numbers([g] * len(row)))
    return {
        "clip_low": float(low),
        "clip_high": float(high),
        "policy_logprobs": [numbers(r) for r in policy],
        "behavior_logprobs": [numbers(r) for r in behavior],
        "advantages": numbers(advantages),
        "loss": float(loss),
        "ratios": numbers(ratios),
        "clipped": clipped,
        "gradients": gradients,
    }


gspo = [
    gspo_case(D(1) / 1024, D("3e-4"), D("4e-4")),
    gspo_case(D(1) / 2, D("0.2"), D("0.28")),
    gspo_case(D(2), D("0.2"), D("0.2")),
]

# --- imitation next to a policy loss -------------------------------------------------------------------------


def mixed_case(coefficient):
    """Token mean over the policy's tokens plus the coefficient times the token mean over the solutions'."""
    answers, solutions = [5, 2, 9], [4, 1]
    return {
        "coefficient": float(coefficient),
        "answers": answers,
        "solutions": solutions,
        "policy_weight": float(D(1) / sum(answers)),
        "imitation_weight": float(coefficient / sum(solutions)),
    }


mixed = [mixed_case(D("0.25")), mixed_case(D(1))]

cases = {"evol": evol, "dapo": dapo, "dr_grpo": dr_grpo, "gspo": gspo, "mixed": mixed}
# One case a line.
lines = [f'"{name}": [\n' + ",\n".join(json.dumps(c) for c in of) + "\n]" for name, of in cases.items()]
print("{\n" + ",\n".join(lines) + "\n}")
