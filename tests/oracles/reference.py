"""The reference: GPT-2's forward pass, filters and greedy decoding in NumPy float64, from the formulas of the papers.

It has no cache and shares no code with gpt2_tf. `weights` maps OpenAI's names ("model/h0/attn/c_attn/w") to arrays.
"""

import numpy as np


def norm(x, g, b):
    mean = x.mean(-1, keepdims=True)
    return g * (x - mean) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) + b


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def forward(weights, n_head, tokens):
    """One row of token ids -> logits [seq, n_vocab] and present [n_layer, 2, n_head, seq, head_dim]."""
    w = {name.removeprefix("model/"): np.asarray(value, np.float64) for name, value in weights.items()}
    n_layer = 1 + max(int(name[1 : name.index("/")]) for name in w if name.startswith("h"))
    seq = len(tokens)
    x = w["wte"][tokens] + w["wpe"][:seq]  # [seq, n_embd]

    def dense(x, name):
        return x @ w[f"{name}/w"][0] + w[f"{name}/b"]

    presents = []
    for i in range(n_layer):
        a = dense(norm(x, w[f"h{i}/ln_1/g"], w[f"h{i}/ln_1/b"]), f"h{i}/attn/c_attn")
        q, k, v = a.reshape(seq, 3, n_head, -1).transpose(1, 2, 0, 3)  # [n_head, seq, head_dim] each
        presents.append(np.stack([k, v]))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        scores[:, np.triu(np.ones([seq, seq], bool), 1)] = -np.inf
        x = x + dense((softmax(scores) @ v).transpose(1, 0, 2).reshape(seq, -1), f"h{i}/attn/c_proj")
        m = norm(x, w[f"h{i}/ln_2/g"], w[f"h{i}/ln_2/b"])
        x = x + dense(gelu(dense(m, f"h{i}/mlp/c_fc")), f"h{i}/mlp/c_proj")
    return norm(x, w["ln_f/g"], w["ln_f/b"]) @ w["wte"].T, np.stack(presents)


def greedy(weights, n_head, tokens, length):
    """Return the context and `length` tokens of greedy decoding; each step runs the whole text again."""
    tokens = list(tokens)
    for _ in range(length):
        tokens.append(int(forward(weights, n_head, tokens)[0][-1].argmax()))
    return tokens


def top_k_kept(logits, k):
    """The set of ids that top-k keeps of one row: the k-th largest and all that aren't smaller."""
    return set(np.flatnonzero(logits >= np.sort(logits)[-k]))


def top_p_kept(logits, p):
    """The set of ids that OpenAI's top-p keeps of one row without equals: while the sum is at most p, at least one."""
    kept, total = set(), 0.0
    probabilities = softmax(logits)
    for i in np.argsort(-logits):
        total += probabilities[i]
        if kept and total > p:
            break
        kept.add(i)
    return kept
