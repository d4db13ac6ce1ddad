"""Scripts: text and JSONL to actions, and errors that point at what is wrong."""

import contextlib

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import BinaryActions, ContinuousActions, DictActions, DiscreteActions, TextActions
from inferix_env.script_words import words_of_world
from inferix_env.scripts import load_script, parse_script, read_jsonl_script, spec_of_space

MOVES = DiscreteActions(3, ("none", "left", "right"))
VECTOR = ContinuousActions((-1.0, -1.0), (1.0, 1.0))
PAD = DictActions((("w", DiscreteActions(2)), ("move", DiscreteActions(3, ("stay", "on", "back"))), ("look", VECTOR)))

KEYS = BinaryActions(4, ("forward", "back", "left", "right"))
GAME = DictActions((("keyboard", KEYS), ("mouse", VECTOR)))
RUNNER = DictActions((("keyboard", BinaryActions(3, ("nomove", "jump", "slide"))),))
TEXT = TextActions(40)
CAR = ContinuousActions((-1.0, 0.0, 0.0), (1.0, 1.0, 1.0), ("steer", "gas", "brake"))
ARROWS = {"left": [-1, 0, 0], "right": [1, 0, 0], "up": [0, 1, 0], "left+up": [-1, 1, 0]}
WASD = words_of_world({}, GAME)


def same(given, expected) -> bool:
    if isinstance(expected, dict):
        return list(given) == list(expected) and all(same(given[k], v) for k, v in expected.items())
    return np.array_equal(given, np.asarray(expected, np.asarray(given).dtype)) and np.shape(given) == np.shape(
        expected
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("right*3, noop*2, left", [2, 2, 2, 0, 0, 1]),
        ("RIGHT, Left*1", [2, 1]),
        ("2,1 * 2,\n0", [2, 1, 1, 0]),
        ("none", [0]),
    ],
)
def test_discrete_text(text, expected):
    assert parse_script(text, MOVES) == expected


def test_noop_is_a_name_of_the_worlds_own_if_it_has_one():
    assert parse_script("none, noop", DiscreteActions(2, ("go", "none"))) == [1, 0]


def test_a_name_may_hold_a_plus():
    assert parse_script("left+fire*2", DiscreteActions(2, ("left", "left+fire"))) == [1, 1]


def test_continuous_text():
    script = parse_script("(0.1,-0.2)*2, noop, ( +1 , 0 )", VECTOR)
    assert [a.dtype for a in script] == [np.float32] * 4
    assert np.allclose(script, [[0.1, -0.2], [0.1, -0.2], [0, 0], [1, 0]])


def test_named_parts():
    script = parse_script("w*2, w+look(+0.5,0), move(back), move(2) + w(0), noop", PAD)
    neutral = {"w": 0, "move": 0, "look": [0, 0]}
    changes = [{"w": 1}, {"w": 1}, {"w": 1, "look": [0.5, 0]}, {"move": 2}, {"move": 2}, {}]
    assert all(same(a, {**neutral, **c}) for a, c in zip(script, changes, strict=True))
    assert script[2]["look"].dtype == np.float32


def test_keys_by_name():
    script = parse_script("forward+left*2, mouse(0,0.1)*2, Back + mouse(0.1,0), keyboard(0,1,1,0), noop", GAME)
    still, run = [0, 0, 0, 0], [1, 0, 1, 0]
    keys = [run, run, still, still, [0, 1, 0, 0], [0, 1, 1, 0], still]
    mouse = [[0, 0], [0, 0], [0, 0.1], [0, 0.1], [0.1, 0], [0, 0], [0, 0]]
    assert [a["keyboard"].tolist() for a in script] == keys
    assert np.allclose([a["mouse"] for a in script], mouse)
    assert {(a["keyboard"].dtype.name, a["mouse"].dtype.name) for a in script} == {("int8", "float32")}
    assert [a.tolist() for a in parse_script("left+back, noop", KEYS)] == [[0, 1, 1, 0], still]


def test_the_key_that_stands_for_none_gives_way():
    keys = [a["keyboard"].tolist() for a in parse_script("noop, jump, nomove, slide*1", RUNNER)]
    assert keys == [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"a red fox"*2, ""*2, "it runs"', ["a red fox", "a red fox", "", "", "it runs"]),
        ('"one, two (three*4" * 2', ["one, two (three*4"] * 2),
        (r'"says \"go\" \\ now"', [r'says "go" \ now']),
        ("noop, none*2", ["", "", ""]),
    ],
)
def test_prompts_in_quotes(text, expected):
    assert parse_script(text, TEXT) == expected


def test_numbers_by_name_and_a_worlds_keys():
    script = parse_script("steer(-0.5), gas*2, Left+gas, left + up, brake(0.2)+right, (0.1,0,0), noop", CAR, ARROWS)
    expected = [[-0.5, 0, 0], *[[0, 1, 0]] * 2, *[[-1, 1, 0]] * 2, [1, 0, 0.2], [0.1, 0, 0], [0, 0, 0]]
    assert {(a.dtype.name, a.shape) for a in script} == {("float32", (3,))}
    assert np.allclose(script, expected)


def test_keys_of_a_world_whose_numbers_have_no_names():
    nameless = ContinuousActions(CAR.low, CAR.high)
    words = words_of_world({"keys": ARROWS}, nameless)
    assert list(words) == ["left", "right", "up"]
    assert np.allclose(parse_script("left+up, (0,0,1)", nameless, words), [[-1, 1, 0], [0, 0, 1]])
    assert parse_script("a*2, 1", DiscreteActions(3), {"a": 2}) == [2, 2, 1]


def test_a_game_takes_its_keys_by_letter_too_and_its_mouse_is_a_look():
    run, turn, both, strafe = parse_script("w, look(+0.1,0), w+d+l, left", GAME, WASD)
    assert run["keyboard"].tolist() == [1, 0, 0, 0]
    assert np.allclose(turn["mouse"], [0.1, 0])
    assert (both["keyboard"].tolist(), both["mouse"].tolist()) == ([1, 0, 0, 1], [0, np.float32(0.1)])
    assert strafe["keyboard"].tolist() == [0, 0, 1, 0]  # what the world calls so itself comes before the arrow key
    assert not strafe["mouse"].any()


@pytest.mark.parametrize(
    ("text", "actions", "words", "column", "problem"),
    [
        ("left*2, jump", CAR, ARROWS, 8, "no action 'jump'"),
        ("left+steer(0.1)", CAR, ARROWS, 5, "'steer' stands twice"),
        ("gas+up", CAR, ARROWS, 4, "'gas' stands twice"),
        ("steer*4", CAR, ARROWS, 0, "'steer' takes a number from -1 to 1: steer(...)"),
        ("gas(1.5)", CAR, ARROWS, 4, "expected a number from 0 to 1"),
        ("gas, (1,0)", CAR, ARROWS, 6, "expected 3 numbers"),
        ("w+forward", GAME, WASD, 2, "'forward' stands twice"),
        ("b", DiscreteActions(3), {"a": 2}, 0, "no action 'b'"),
    ],
)
def test_a_mistake_among_words_is_pointed_at(text, actions, words, column, problem):
    with pytest.raises(ValueError) as caught:
        parse_script(text, actions, words)
    first, _, caret, known = str(caught.value).split("\n")
    assert problem in first
    assert caret == "  " + " " * column + "^"
    assert all(word in known for word in words)


@pytest.mark.parametrize(
    ("text", "actions", "column", "problem"),
    [
        ('"a fox"*2, fox', TEXT, 11, "double quotes"),
        ('"a fox*2', TEXT, 0, "double quotes"),
        ('"a", "b" "c"', TEXT, 5, "double quotes"),
        ('"a fox"*x', TEXT, 8, "count 'x'"),
        ('"a", ', TEXT, 5, "expected an action"),
        (f'"a", "{"b" * 41}"', TEXT, 5, "expected at most 40"),
        ("forward+jump", GAME, 8, "no action 'jump'"),
        ("left+back+Left", GAME, 10, "'left' stands twice"),
        ("left+keyboard(0,0,0,0)", GAME, 5, "'keyboard' stands twice"),
        ("mouse", GAME, 0, "takes 2 numbers"),
        ("keyboard(0,2,0,0)", GAME, 9, "expected 4 numbers from 0 to 1"),
        ("right*12, lefft*4", MOVES, 10, "no action 'lefft'"),
        ("", MOVES, 0, "expected an action"),
        ("right, ,left", MOVES, 7, "expected an action"),
        ("right,", MOVES, 6, "expected an action"),
        ("right*x", MOVES, 6, "count 'x'"),
        ("right* 0", MOVES, 7, "count '0'"),
        ("right*-2", MOVES, 6, "count '-2'"),
        ("right*1.5", MOVES, 6, "count '1.5'"),
        ("left, 3", MOVES, 6, "no action '3'"),
        ("left*900000, left*900000", MOVES, 13, "at most 1000000"),
        ("left*99999999999999999999", MOVES, 5, "count"),
        ("left(2)", MOVES, 0, "no action 'left(2)'"),
        ("noop, (0.1)", VECTOR, 7, "expected 2 numbers"),
        ("(0.1,3)", VECTOR, 1, "expected 2 numbers from"),
        ("(0.1, nan)", VECTOR, 1, "expected 2 numbers from"),
        ("(0.1, a)", VECTOR, 6, "'a' is no number"),
        ("(0.1,0.2", VECTOR, 0, "parentheses"),
        ("(0.1,0.2)(0,0)", VECTOR, 0, "parentheses"),
        ("up*2", VECTOR, 0, "no action 'up'"),
        ("w+jump*3", PAD, 2, "no action 'jump'"),
        ("w+ w", PAD, 3, "twice"),
        ("w+", PAD, 2, "expected an action"),
        ("look*2", PAD, 0, "takes 2 numbers"),
        ("w, look(0,2)", PAD, 8, "expected 2 numbers"),
        ("move(7)", PAD, 5, "no value '7'"),
        ("move(sideways)", PAD, 5, "stay, on, back"),
    ],
)
def test_a_mistake_is_pointed_at(text, actions, column, problem):
    with pytest.raises(ValueError) as caught:
        parse_script(text, actions)
    first, shown, caret, known = str(caught.value).split("\n")
    assert problem in first
    assert shown == f"  {text}"
    assert caret == "  " + " " * column + "^"
    assert known.startswith("known: ")


def test_what_is_known_is_listed():
    with pytest.raises(ValueError, match="known: none, left, right, 0 to 2, noop"):
        parse_script("x", MOVES)
    with pytest.raises(ValueError, match=r"known: w, move, look\(x,x\), noop"):
        parse_script("x", PAD)
    with pytest.raises(ValueError, match=r"known: forward, back, left, right, mouse\(x,x\), noop"):
        parse_script("x", GAME)
    with pytest.raises(ValueError, match=r"known: steer\(x\), gas, gas\(x\), brake, brake\(x\), \(x,x,x\) from .*, up"):
        parse_script("x", CAR, ARROWS)


def test_the_caret_stays_right_on_a_late_line_and_in_a_long_one():
    with pytest.raises(ValueError, match=r"\n {5}left, oops\n {11}\^\n"):
        parse_script("right,\n   left, oops\n", MOVES)
    with pytest.raises(ValueError) as caught:
        parse_script("left, " * 500 + "oops", MOVES)
    _, shown, caret, _ = str(caught.value).split("\n")
    assert shown[caret.index("^") :] == "oops"
    assert len(shown) < 110


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=20))
def test_runs_come_back_as_they_were_written(runs):
    text = ", ".join(f"{MOVES.names[action]}*{count}" for action, count in runs)
    assert parse_script(text, MOVES) == [action for action, count in runs for _ in range(count)]


@given(st.text(alphabet='left()*+,. 012w"\\\n', max_size=30), st.sampled_from([MOVES, VECTOR, PAD, GAME, TEXT, CAR]))
def test_any_text_gives_valid_actions_or_a_value_error(text, actions):
    with contextlib.suppress(ValueError):
        script = parse_script(text, actions, ARROWS if actions is CAR else None)
        assert script
        assert all(actions.encode(action).shape == (actions.width,) for action in script[:50])


def write(tmp_path, *lines):
    path = tmp_path / "actions.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_jsonl_of_bare_and_wrapped_actions(tmp_path):
    path = write(tmp_path, '{"header": {"seed": 3}}', '{"step": 1, "action": 2, "reward": 0.5}', "", "1", '"LEFT"')
    assert read_jsonl_script(path, MOVES) == [2, 1, 1]
    assert load_script(path, MOVES) == load_script(str(path), MOVES) == [2, 1, 1]


def test_jsonl_of_vectors_and_parts(tmp_path):
    [action] = read_jsonl_script(write(tmp_path, '{"action": [0.5, -1]}'), VECTOR)
    assert same(action, [0.5, -1])
    assert action.dtype == np.float32
    bare = '{"w": 1, "move": "on", "look": [0, 0.5]}'
    script = read_jsonl_script(write(tmp_path, bare, f'{{"action": {bare}}}'), PAD)
    assert all(same(a, {"w": 1, "move": 1, "look": [0, 0.5]}) for a in script)


def test_jsonl_of_prompts_and_keys(tmp_path):
    assert read_jsonl_script(write(tmp_path, '"a fox"', '{"action": ""}'), TEXT) == ["a fox", ""]
    [action] = read_jsonl_script(write(tmp_path, '{"keyboard": [1, 0, 0, 1], "mouse": [0, 0.1]}'), GAME)
    assert same(action, {"keyboard": [1, 0, 0, 1], "mouse": np.float32([0, 0.1])})
    assert action["keyboard"].dtype == np.int8


def test_a_part_called_action_is_no_wrapping(tmp_path):
    actions = DictActions((("action", DiscreteActions(3)),))
    assert read_jsonl_script(write(tmp_path, '{"action": 2}'), actions) == [{"action": 2}]


@pytest.mark.parametrize(
    ("line", "actions", "problem"),
    [
        ("{oops", MOVES, r"line 2, column 2: no JSON"),
        ("3", MOVES, r"line 2: action 3: expected an integer from 0 to 2"),
        ("true", MOVES, r"line 2: action True"),
        ("1.0", MOVES, r"line 2: action 1.0"),
        ('"up"', MOVES, r"line 2: no action 'up'; known: none, left"),
        ('{"reward": 1}', MOVES, r"line 2: .*expected an action"),
        ('{"header": {}}', MOVES, r"line 2: .*expected an action"),
        ("[0]", VECTOR, r"line 2: action .*expected 2 finite"),
        ('"x"', VECTOR, r"line 2: action 'x': expected 2 numbers"),
        ('{"action": {"w": 1}}', PAD, r"line 2: action \['w'\]"),
        ("3", TEXT, r"line 2: action 3: expected a prompt"),
        ('{"keyboard": [2, 0, 0, 0], "mouse": [0, 0]}', GAME, r"line 2: action .*expected 4 zeros and ones"),
        ('{"keyboard": "w", "mouse": [0, 0]}', GAME, r"line 2: action 'w': expected 4 zeros and ones"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, actions, problem):
    good = {MOVES: "1", VECTOR: "[0, 0]", PAD: '{"w": 1, "move": 0, "look": [0, 0]}', TEXT: '""'}
    good[GAME] = '{"keyboard": [0, 0, 0, 0], "mouse": [0, 0]}'
    with pytest.raises(ValueError, match=problem):
        read_jsonl_script(write(tmp_path, good[actions], line), actions)


def test_files_that_hold_nothing_or_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="holds no action"):
        read_jsonl_script(write(tmp_path, '{"header": {}}'), MOVES)
    with pytest.raises(ValueError, match="cannot be read"):
        load_script(str(tmp_path / "missing.jsonl"), MOVES)


def test_specs_of_spaces():
    space = gym.spaces.Dict(go=gym.spaces.Discrete(2), turn=gym.spaces.Box(-np.inf, np.inf, (1,)))
    spec = spec_of_space(space)
    assert all(space.contains(action) for action in parse_script("go*2, go+turn(40), noop", spec))
    for space in (gym.spaces.Discrete(3, start=1), gym.spaces.MultiBinary(3), gym.spaces.Box(0, 1, (2, 2))):
        with pytest.raises(ValueError, match="scripts know"):
            spec_of_space(space)
