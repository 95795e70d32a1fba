"""The scenes world: small RGB pictures of one to three objects, their captions, questions and labels, as pure functions
of (seed, index).

Nothing is read from disk and no generator is shared: every number comes from a hash of (seed, index, stream), so
picture k is the same whatever the batch it is drawn in. A picture is drawn from signed distance functions d (in pixels,
negative inside): coverage = clip(1/2 − d, 0, 1), colour = (1 − coverage)·background + coverage·surface.

    sample(seed, indices, domain)     -> Scenes, the attributes
    render(scenes, domain, size)      -> float32 (N, 3, size, size) in [0, 1]
    captions(scenes, seed, indices)   -> N sentences
    questions(scenes, seed, indices)  -> N (question, answer) pairs

The label spaces built on this are in `shared.data.scene_sets`.
"""

from dataclasses import dataclass, field, replace

import numpy as np

VERSION = "scenes-1"  # part of the key of every measurement: raise it when any picture, caption or label changes

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
SURFACES = ("plain", "striped", "dotted", "checkered")
SIZES = ("small", "medium", "large")
POSITIONS = ("left", "right", "top", "bottom", "centre")
BACKGROUNDS = ("black", "white", "grey", "brown", "navy", "beige")
COUNTS = ("one", "two", "three")
ATTRIBUTES = {
    "shape": SHAPES,
    "colour": COLOURS,
    "surface": SURFACES,
    "size": SIZES,
    "position": POSITIONS,
    "background": BACKGROUNDS,
    "count": COUNTS,
}

RGB = np.array(
    [
        (0.90, 0.10, 0.10),
        (0.10, 0.65, 0.15),
        (0.12, 0.25, 0.92),
        (0.96, 0.88, 0.10),
        (0.55, 0.15, 0.70),
        (0.98, 0.52, 0.05),
        (0.10, 0.85, 0.90),
        (0.98, 0.50, 0.75),
    ],
    np.float32,
)
BACKGROUND_RGB = np.array(
    [
        (0.04, 0.04, 0.04),
        (0.96, 0.96, 0.96),
        (0.50, 0.50, 0.50),
        (0.40, 0.25, 0.14),
        (0.08, 0.10, 0.32),
        (0.87, 0.80, 0.64),
    ],
    np.float32,
)
RADIUS = np.array([(5.5, 6.5), (8.0, 9.5), (11.5, 13.0)], np.float32)  # pixels of a 32-pixel picture, by size


@dataclass(frozen=True)
class Domain:
    """How a family of pictures departs from the pre-training one (all fields at their defaults).

    `fixed` pins attributes to a subset of values by name; `combos` restricts (attribute, …) jointly to the listed value
    tuples.
    """

    kinds: tuple[float, float, float] = (
        0.6,
        0.2,
        0.2,
    )  # shares of: one object, several of one kind, two different ones
    fixed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    outline: bool = False  # only a 2-pixel contour is drawn
    grey: bool = False  # colours replaced by their luminance
    rotation: float = 12.0  # largest rotation of an object, degrees
    clutter: int = 0  # small grey specks behind the object
    contrast: float = 1.0  # picture pulled towards mid-grey: 1/2 + contrast·(x − 1/2)
    radius: tuple[float, float] | None = None  # overrides the radius, e.g. for tiny objects
    texture: bool = False  # a two-tone wave pattern as background


# of the vision-language sets: what the models are trained on, and pictures with grey specks and less contrast, which
# they never saw
VL_DOMAINS = {"plain": Domain(), "shifted": Domain(kinds=(1.0, 0.0, 0.0), clutter=5, contrast=0.8)}


@dataclass(frozen=True)
class Scenes:
    """Attributes of N scenes as index arrays into the tuples above; object attributes are (N, 3), of which `n_objects`
    columns count.

    kind: 0 one object, 1 several of one kind, 2 two different ones. Lengths in pixels of a 32-pixel picture, angles in
    radians.
    """

    kind: np.ndarray
    n_objects: np.ndarray
    shape: np.ndarray
    colour: np.ndarray
    surface: np.ndarray
    size: np.ndarray  # (N,)
    position: np.ndarray  # (N,), of the single object
    background: np.ndarray  # (N,)
    radius: np.ndarray
    cx: np.ndarray
    cy: np.ndarray
    angle: np.ndarray
    grain: np.ndarray  # (N, 3) direction of the surface pattern
    phase: np.ndarray
    noise: np.ndarray  # (N,) uint64, the root of the pixel noise and of everything drawn behind the objects

    def __len__(self) -> int:
        return len(self.kind)

    def values(self, attribute: str) -> np.ndarray:
        """(N,) index of `attribute` (a key of ATTRIBUTES) of the first object."""
        if attribute == "count":
            return self.n_objects - 1
        column = getattr(self, attribute)
        return column[:, 0] if column.ndim == 2 else column


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words whose output bits all depend
    on all input bits."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


_GOLDEN = 0x9E3779B97F4A7C15


def _words(seed: int, indices: np.ndarray, stream: int, columns: int) -> np.ndarray:
    """(N, columns) pseudo-random 64-bit words, a function of (seed, index, stream, column) only."""
    with np.errstate(over="ignore"):
        root = _mix(
            np.asarray(indices, np.uint64) * np.uint64(_GOLDEN)
            + _mix(np.uint64(seed % 2**64) + np.uint64(stream) * np.uint64(_GOLDEN))
        )
        return _mix(root[:, None] + np.arange(1, columns + 1, dtype=np.uint64) * np.uint64(_GOLDEN))


def uniforms(seed: int, indices: np.ndarray, stream: int, columns: int) -> np.ndarray:
    """(N, columns) float64, uniform on [0, 1), a function of (seed, index, stream, column) only."""
    return (_words(seed, indices, stream, columns) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _choose(u: np.ndarray, attribute: str, domain: Domain) -> np.ndarray:
    values = ATTRIBUTES[attribute]
    allowed = np.array([values.index(v) for v in domain.fixed.get(attribute, values)])
    return allowed[(u * len(allowed)).astype(np.int64)]


def sample(seed: int, indices, domain: Domain | None = None, **given: np.ndarray) -> Scenes:
    """Draw the attributes of scenes `indices`; `given` fixes attributes of the first object per scene, e.g.
    `shape=array of N`.

    Every attribute not given is uniform over what `domain.fixed` allows.
    """
    domain = domain or Domain()
    indices = np.asarray(indices, np.int64)
    u = uniforms(seed, indices, 0, 16)
    objects = {
        name: _choose(uniforms(seed, indices, 1 + k, 3), name, domain)
        for k, name in enumerate(("shape", "colour", "surface"))
    }
    single = {
        name: _choose(u[:, k], name, domain) for k, name in enumerate(("size", "position", "background", "count"))
    }
    kind = np.searchsorted(np.cumsum(domain.kinds)[:2], u[:, 4], side="right")
    if "count" in given or "count" in domain.fixed:
        single["count"] = given.get("count", single["count"])
        kind = np.where(single["count"] > 0, 1, 0)
    n_objects = np.select(
        [kind == 0, kind == 1], [1, np.where(single["count"] > 0, single["count"] + 1, 2 + (u[:, 5] < 0.5))], 2
    )
    for name in ("shape", "colour", "surface"):
        values = objects[name]
        if name in given:
            values[:, 0] = given[name]
        values[kind == 1] = values[kind == 1][:, :1]
    for name in ("size", "position", "background"):
        single[name] = given.get(name, single[name])
    # two different objects differ in shape and in colour, so that a caption of one does not fit the other
    for name in ("shape", "colour"):
        same = (kind == 2) & (objects[name][:, 0] == objects[name][:, 1])
        objects[name][same, 1] = (
            objects[name][same, 1] + 1 + (u[same, 6] * (len(ATTRIBUTES[name]) - 1)).astype(int)
        ) % len(ATTRIBUTES[name])

    size = np.where(kind == 0, single["size"], 0)
    low, high = (
        (np.array([r[i] for r in RADIUS]) for i in (0, 1))
        if domain.radius is None
        else (np.full(3, r) for r in domain.radius)
    )
    v = uniforms(seed, indices, 8, 16)
    radius = low[size][:, None] + (high - low)[size][:, None] * v[:, :3]
    cx, cy = _places(kind, n_objects, single["position"], radius, v, u)
    turn = np.deg2rad(domain.rotation) * (2 * v[:, 9:12] - 1)
    return Scenes(
        kind,
        n_objects,
        **objects,
        size=size,
        position=single["position"],
        background=single["background"],
        radius=radius,
        cx=cx,
        cy=cy,
        angle=turn,
        grain=np.pi / 4 * (4 * v[:, 12:15]).astype(int),
        phase=2 * np.pi * uniforms(seed, indices, 9, 3),
        noise=_words(seed, indices, 10, 1)[:, 0],
    )


_DIRECTION = np.array([(-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)], np.float64)  # of POSITIONS; y grows downwards


def _places(kind, n_objects, position, radius, v, u):
    """Centres (N, 3): the single object by its position, two side by side or one above the other, three on a triangle;
    all jittered."""
    reach = 15.5 - radius[:, :1]  # so that the object stays inside the picture
    offset = _DIRECTION[position] * reach * (0.75 + 0.25 * v[:, 3:4])
    # across the named direction the object may sit anywhere near the middle
    jitter = (2 * v[:, 4:6] - 1) * np.where(_DIRECTION[position] == 0, np.minimum(1.5, reach), 0)
    cx, cy = np.repeat(16 + offset[:, :1] + jitter[:, :1], 3, 1), np.repeat(16 + offset[:, 1:] + jitter[:, 1:], 3, 1)
    two, three = n_objects == 2, n_objects == 3
    beside = two & ((u[:, 7] < 0.7) | (kind == 2))
    above = two & ~beside
    wobble = 1.2 * (2 * v[:, 6:9] - 1)
    for mask, xs, ys in (
        (beside, (8, 24, 24), (16, 16, 16)),
        (above, (16, 16, 16), (8, 24, 24)),
        (three, (8, 24, 16), (9.5, 9.5, 23)),
    ):
        cx[mask], cy[mask] = np.array(xs) + wobble[mask], np.array(ys) + wobble[mask][:, ::-1]
    return cx, cy


def _distance(shape: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance (approximate away from the edge) to a shape of unit radius, y upwards."""
    name = SHAPES[shape]
    if name == "circle":
        return np.sqrt(x * x + y * y) - 0.95
    if name == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.82
    if name == "triangle":
        return np.maximum(0.866 * np.abs(x) + 0.5 * y, -y) - 0.55
    if name == "ring":
        return np.abs(np.sqrt(x * x + y * y) - 0.70) - 0.25
    if name == "cross":
        ax, ay = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(ax - 0.95, ay - 0.30), np.maximum(ay - 0.95, ax - 0.30))
    if name == "moon":
        return np.maximum(np.sqrt(x * x + y * y) - 0.98, 0.80 - np.sqrt((x - 0.52) ** 2 + (y - 0.12) ** 2))
    if name == "heart":
        ax = np.abs(x)
        lobe = np.sqrt((ax - 0.43) ** 2 + (y - 0.33) ** 2) - 0.50
        tip = (1.10 * ax - 0.88 * (y + 0.95)) / 1.409
        return np.minimum(lobe, np.maximum(np.maximum(tip, y - 0.5), ax - 0.86))
    # star: fold the plane onto one half of one of its five points, then the distance to the edge from the tip to the
    # inner corner
    fifth = 2 * np.pi / 5
    r, a = np.sqrt(x * x + y * y), np.arctan2(x, y)
    a = np.abs(np.mod(a + fifth / 2, fifth) - fifth / 2)
    inner = 0.45 * np.array((np.cos(fifth / 2), np.sin(fifth / 2)))
    edge = np.array((1.0, 0.0)) - inner
    normal = np.array((-edge[1], edge[0])) / np.hypot(*edge)
    return normal[0].astype(x.dtype) * (r * np.cos(a) - x.dtype.type(1)) + normal[1].astype(x.dtype) * (r * np.sin(a))


def _pattern(surface: int, u: np.ndarray, v: np.ndarray) -> np.ndarray | None:
    """Share of the second tone at pattern coordinates u, v (radians): None for a plain surface."""
    name = SURFACES[surface]
    if name == "plain":
        return None
    if name == "striped":
        return np.clip(0.5 + 2.0 * np.sin(u), 0, 1)
    if name == "dotted":
        return np.clip(0.5 + 1.5 * (np.cos(u) + np.cos(v) - 0.7), 0, 1)
    return np.clip(0.5 + 3.0 * np.sin(0.75 * u) * np.sin(0.75 * v), 0, 1)


_PERIOD = 5.5  # pixels per stripe pair, of a 32-pixel picture


def render(scenes: Scenes, domain: Domain | None = None, size: int = 32) -> np.ndarray:
    """Draw the scenes: float32 (N, 3, size, size) in [0, 1]."""
    domain = domain or Domain()
    out = np.empty((len(scenes), 3, size, size), np.float32)
    for start in range(0, len(scenes), 1024):  # bounds the memory of the work arrays
        part = slice(start, start + 1024)
        block = replace(scenes, **{name: getattr(scenes, name)[part] for name in scenes.__dataclass_fields__})
        out[part] = _render_block(block, domain, size)
    return out


def _render_block(s: Scenes, domain: Domain, size: int) -> np.ndarray:
    f = np.float32
    pixel = (np.arange(size, dtype=f) + 0.5) * f(32 / size)
    px, py = pixel[None, None, :], pixel[None, :, None]
    picture = np.broadcast_to(BACKGROUND_RGB[s.background][:, :, None, None], (len(s), 3, size, size)).copy()
    if domain.texture:
        picture = _texture(picture, s, px, py)
    for k in range(domain.clutter):
        _speck(picture, s, k, pixel)
    _draw_objects(picture, s, pixel, domain.outline)
    for start in range(0, len(s), 32):  # few enough pictures to stay in the cache through all of it
        _expose(picture[start : start + 32], s.noise[start : start + 32], domain, px, py)
    return picture


def _expose(picture, noise, domain, px, py):
    """What happens to the whole picture, in place: grey, light falling from one side, sensor noise, contrast, eight
    bits as a photograph has."""
    f = np.float32
    if domain.grey:  # written out: a matrix product rounds differently in batches of different size
        picture[:] = (f(0.299) * picture[:, 0] + f(0.587) * picture[:, 1] + f(0.114) * picture[:, 2])[:, None]
    light = uniforms(0, noise, 1, 3).astype(f)[:, :, None, None]
    slope = (
        ((light[:, 0] - 0.5) * (px / 16 - 1) + (light[:, 1] - 0.5) * (py / 16 - 1)) * f(0.16)
        + f(0.94)
        + light[:, 2] * f(0.06)
    )
    picture *= slope[:, None]
    size = picture.shape[-1]
    words = _mix(
        noise[:, None] + np.arange(1, size * size + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    )  # a hash per pixel, 21 bits a channel
    for channel in range(3):
        bits = ((words >> np.uint64(21 * channel)) & np.uint64(0x1FFFFF)).astype(f)
        bits *= f(2.0**-20)
        bits -= 1
        bits *= f(0.03)
        picture[:, channel] += bits.reshape(-1, size, size)
    if domain.contrast != 1.0:
        picture -= f(0.5)
        picture *= f(domain.contrast)
        picture += f(0.5)
    np.clip(picture, 0, 1, out=picture)
    picture *= f(255)
    np.rint(picture, out=picture)
    picture /= f(255)


def _draw_objects(picture, s, pixel, outline):
    """Paint over the picture object after object: those of one shape and about one size are computed together."""
    size = len(pixel)
    rows, ks = np.nonzero(np.arange(3) < s.n_objects[:, None])
    window = np.minimum(
        np.ceil(2.4 * s.radius[rows, ks] * size / 32).astype(int) + 2, size
    )  # only its surroundings are computed
    # in a small batch fewer, larger groups are quicker: each costs the same number of calls
    group = s.shape[rows, ks] * 1000 + (window // 6 if len(rows) > 400 else 0)
    jitter = np.stack([uniforms(0, s.noise, 2 + k, 3) for k in range(3)], 1)[rows, ks].astype(np.float32)
    base = np.clip(
        RGB[s.colour[rows, ks]] + (jitter - np.float32(0.5)) * np.float32(0.10), np.float32(0), np.float32(1)
    )
    dark = BACKGROUND_RGB[s.background[rows]].mean(1) < 0.45
    second = np.where(
        dark[:, None], base + (1 - base) * np.float32(0.75), base * np.float32(0.22)
    )  # the other tone of a pattern
    later = []
    for value in np.unique(group):
        some = np.flatnonzero(group == value)
        left, top, keep, paint = _paint(
            s, rows[some], ks[some], base[some], second[some], value // 1000, pixel, int(window[some].max()), outline
        )
        for j, (row, k, x, y) in enumerate(zip(rows[some], ks[some], left, top, strict=True)):
            if k:  # lies above the first object of its picture, which may be in another group
                later.append((k, row, x, y, keep[j], paint[j]))
            else:
                _cover(picture[row], x, y, keep[j], paint[j])
    for _, row, x, y, keep, paint in sorted(later, key=lambda entry: entry[0]):
        _cover(picture[row], x, y, keep, paint)


def _cover(picture, left, top, keep, paint):
    """picture·keep + paint in one window. Slices in place: several times faster than gathering and scattering the
    windows of a group."""
    view = picture[:, top : top + len(keep), left : left + len(keep)]
    view *= keep
    view += paint


def _paint(s, rows, ks, base, second, shape, pixel, window, outline):
    """Object ks[j] of picture rows[j], of two tones (M, 3): the corner of its window (left, top), and there 1 −
    coverage and coverage·colour."""
    f, size = np.float32, len(pixel)

    def column(a):
        return a[rows, ks].astype(f)[:, None, None]

    corners = [np.clip((c[rows, ks] * size / 32 - window / 2).astype(int), 0, size - window) for c in (s.cx, s.cy)]
    left, top = (corner[:, None] + np.arange(window) for corner in corners)
    dx, dy, radius = pixel[left][:, None, :] - column(s.cx), column(s.cy) - pixel[top][:, :, None], column(s.radius)
    cos, sin = np.cos(column(s.angle)), np.sin(column(s.angle))
    x, y = (cos * dx + sin * dy) / radius, (cos * dy - sin * dx) / radius
    distance = _distance(shape, x, y) * (radius * f(size / 32))  # in pixels of this picture
    cover = np.clip(0.5 - ((np.abs(distance + 1) - 1) if outline else distance), 0, 1)
    tone = np.zeros(cover.shape, f)
    scale = f(2 * np.pi / _PERIOD)
    for surface in range(1, len(SURFACES)):
        some = np.flatnonzero(s.surface[rows, ks] == surface)
        if len(some):
            grain, phase = column(s.grain)[some], column(s.phase)[some]
            u = scale * (np.cos(grain) * dx[some] + np.sin(grain) * dy[some]) + phase
            v = scale * (np.cos(grain) * dy[some] - np.sin(grain) * dx[some]) + phase
            tone[some] = _pattern(surface, u, v)
    paint = cover[:, None] * (base[:, :, None, None] + tone[:, None] * (second - base)[:, :, None, None])
    return *corners, 1 - cover, paint


def _texture(picture, s, px, py):
    u = uniforms(0, s.noise, 6, 8).astype(np.float32)[:, :, None, None]
    wave = np.zeros((len(s), *np.broadcast_shapes(px.shape, py.shape)[1:]), np.float32)
    for k in range(2):
        angle, period, phase = (
            u[:, 3 * k] * np.float32(np.pi),
            6 + 8 * u[:, 3 * k + 1],
            u[:, 3 * k + 2] * np.float32(6.2832),
        )
        wave += np.sin((np.cos(angle) * px + np.sin(angle) * py) * np.float32(6.2832) / period + phase)
    return picture + (wave * np.float32(0.13))[:, None]


def _speck(picture, s, k, pixel):
    """A grey disc of 1.2 to 2.5 pixels at a random place, drawn inside the window it can reach."""
    size, f = len(pixel), np.float32
    u = uniforms(0, s.noise, 16 + k, 4).astype(f)[:, :, None, None]
    x, y = 32 * u[:, 0], 32 * u[:, 1]
    window = min(int(np.ceil(6 * size / 32)) + 3, size)
    left, top = (
        np.clip((c[:, 0, 0] * (size / 32) - window / 2).astype(int), 0, size - window)[:, None] + np.arange(window)
        for c in (x, y)
    )
    distance = np.sqrt((pixel[left][:, None, :] - x) ** 2 + (pixel[top][:, :, None] - y) ** 2) - (1.2 + 1.3 * u[:, 2])
    cover = np.clip(0.5 - distance * f(size / 32), 0, 1)
    grey = 0.25 + 0.5 * u[:, 3]
    for row in range(len(picture)):
        view = picture[row, :, top[row, 0] : top[row, 0] + window, left[row, 0] : left[row, 0] + window]
        view += cover[row] * (grey[row] - view)
