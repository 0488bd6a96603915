"""A diff is recorded without the secrets that only their names give away."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from ml_experiments.redaction.diffs import redact_diff
from ml_experiments.redaction.redactor import Redactor

MARK = Redactor.MARK


def diff_of(file: str, *lines: str) -> str:
    header = f"diff --git a/{file} b/{file}\nindex 1..2 100644\n--- a/{file}\n+++ b/{file}\n"
    return header + "@@ -0,0 +1 @@\n" + "".join(f"+{line}\n" for line in lines)


@pytest.mark.parametrize(
    ("file", "line", "redacted"),
    [
        (".env", "AWS_SECRET_ACCESS_KEY=wJalrXUtn/EMI", f"AWS_SECRET_ACCESS_KEY={MARK}"),
        (".env", "export HF_TOKEN='abc def'  # mine", f"export HF_TOKEN='{MARK}'  # mine"),
        (".env", "DB_PASSWORD=two words # mine", f"DB_PASSWORD={MARK} # mine"),
        (".env", "URL=postgres://me:hunter2@db/x", f"URL=postgres://me:{MARK}@db/x"),
        ("c.yaml", "api_key: sk-abc", f"api_key: {MARK}"),
        ("c.yaml", '  "apiKey" : "sk-abc", # x', f'  "apiKey" : "{MARK}", # x'),
        ("c.yaml", "auth: {password: hunter2}", f"auth: {{password: {MARK}"),
        (
            "c.json",
            '{"db": {"password": "a\'b", "user": "u"}}',
            f'{{"db": {{"password": "{MARK}", "user": "u"}}}}',
        ),
        ("c.toml", 'client_secret = "x"', f'client_secret = "{MARK}"'),
        ("c.ini", "db.password : x y", f"db.password : {MARK}"),
        ("run.sh", "curl -H 'Authorization: Bearer x'", f"curl -H 'Authorization: {MARK}'"),
        ("a.http", "Authorization: Basic dTpw=", f"Authorization: {MARK}"),
        ("t.py", 'h = {"Cookie": "a=b; c=d"}', f'h = {{"Cookie": "{MARK}"}}'),
        ("run.sh", "curl -u me:x https://h", f"curl -u me:{MARK} https://h"),
        ("run.sh", "login --password x --user me", f"login --password {MARK} --user me"),
        ("run.sh", "mysql -u me -px db", f"mysql -u me -p{MARK} db"),
        ("a.fish", "set -gx HF_TOKEN x", f"set -gx HF_TOKEN {MARK}"),
        ("Dockerfile", "ENV HF_TOKEN x", f"ENV HF_TOKEN {MARK}"),
        (".npmrc", "//r.org/:_authToken=x", f"//r.org/:_authToken={MARK}"),
        (".npmrc", "_auth=x", f"_auth={MARK}"),
        (".netrc", "machine h login me password x", f"machine h login me password {MARK}"),
        (".netrc", "  password x", f"  password {MARK}"),
        ("redis.conf", "requirepass x", f"requirepass {MARK}"),
        ("c.json", '{"password": "a\\"b", "x": 1}', f'{{"password": "{MARK}", "x": 1}}'),
        (
            "c.json",
            '{"name": "API_KEY", "value": "x"}',
            f'{{"name": "API_KEY", "value": "{MARK}"}}',
        ),
        ("c.xml", "<password>x</password><a>b</a>", f"<password>{MARK}</password><a>b</a>"),
        ("c.xml", '<add key="password" value="x"/>', f'<add key="password" value="{MARK}"/>'),
        ("a.sql", "CREATE USER u IDENTIFIED BY 'x'", f"CREATE USER u IDENTIFIED BY '{MARK}'"),
        ("t.js", "password: `x`", f"password: `{MARK}`"),
        ("t.py", "password = 'x' 'y'", f"password = '{MARK}' '{MARK}'"),
        ("t.py", "# password = x", f"# password = {MARK}"),
        (
            "t.py",
            'add_argument("--api-key", default="x")',
            f'add_argument("--api-key", default="{MARK}")',
        ),
        (
            ".git-credentials",
            "https://abcdefghijklmnopqrstuvwxyz@h.org",
            f"https://{MARK}@h.org",
        ),
        ("run.sh", "train --api-key=x1", f"train --api-key={MARK}"),
        ("t.py", 'API_KEY = "x"  # for "y"', f'API_KEY = "{MARK}"  # for "y"'),
        ("t.py", "api_key: str = f'x'", f"api_key: str = f'{MARK}'"),
        ("t.py", "login(token='x', user='me')", f"login(token='{MARK}', user='me')"),
        ("t.py", 'os.environ["HF_TOKEN"] = "x"', f'os.environ["HF_TOKEN"] = "{MARK}"'),
        ("t.py", 'os.environ.get("HF_TOKEN", "x")', f'os.environ.get("HF_TOKEN", "{MARK}")'),
        ("t.py", 'if password == "x":', f'if password == "{MARK}":'),
        ("t.py", 'connect("host=h password=x y=1")', f'connect("host=h password={MARK} y=1")'),
        ("t.py", f'login("hf_{"a" * 34}")', f'login("{MARK}")'),
        ("t.py", 'password = """x"""', f'password = """{MARK}"""'),
        ("t.ipynb", '"api_key = \\"x\\"\\n",', f'"api_key = \\"{MARK}\\"\\n",'),
        ("t.ts", "const apiKey = 'x';", f"const apiKey = '{MARK}';"),
        ("Dockerfile", "ENV HF_TOKEN=x", f"ENV HF_TOKEN={MARK}"),
        (".env", "A=x;AccountKey=abc", f"A=x;AccountKey={MARK}"),
        (
            ".env",
            "HOOK=https://hooks.slack.com/services/T0/B0/x",
            f"HOOK=https://hooks.slack.com/services/{MARK}",
        ),
        (".env", "U=https://h/c?sv=1&sig=abcdefgh", f"U=https://h/c?sv=1&sig={MARK}"),
        (".pgpass", "h:5432:db:me:x", f"h:5432:db:me:{MARK}"),
        ("server.pem", "A" * 64, MARK),
        ("run.sh", "docker login -u me -p x", f"docker login -u me -p {MARK}"),
        ("run.sh", "sshpass -p x ssh h", f"sshpass -p {MARK} ssh h"),
        ("run.sh", "wandb login x", f"wandb login {MARK}"),
        (
            "run.sh",
            "echo x | docker login --password-stdin",
            f"echo {MARK} | docker login --password-stdin",
        ),
        ("kaggle.json", '{"username":"u","key":"x"}', f'{{"username":"u","key":"{MARK}"}}'),
        ("t.py", "wandb.login(key='x')", f"wandb.login(key='{MARK}')"),
        ("t.py", "get(u, auth=('me', 'x'))", f"get(u, auth=('me', '{MARK}'))"),
        ("t.py", "api_key = environ.get('X') or 'y'", f"api_key = environ.get('X') or '{MARK}'"),
        ("t.py", "api_key = os.getenv('X', 'y')", f"api_key = os.getenv('X', '{MARK}')"),
        (
            "t.py",
            "secrets = {'a': 'x', \"b\": 'y'}",
            f"secrets = {{'a': '{MARK}', \"b\": '{MARK}'}}",
        ),
        ("t.py", "Secret.from_dict({'A': 'x'})", f"Secret.from_dict({{'A': '{MARK}'}})"),
        ("c.yaml", "passwords: [x, 'y']", f"passwords: [{MARK}, '{MARK}']"),
        ("t.ipynb", '"!login --token x\\n"', f'"!login --token {MARK}\\n"'),
        ("t.py", "self.token = 'x'", f"self.token = '{MARK}'"),
        ("t.py", "password = 'x' if a else 'y'", f"password = '{MARK}' if a else '{MARK}'"),
        ("t.py", "password = SecretStr('x')", f"password = SecretStr('{MARK}')"),
        ("t.py", "t = get('API_KEY') or 'x'", f"t = get('API_KEY') or '{MARK}'"),
        ("t.py", "HTTPBasicAuth('me', 'x')", f"HTTPBasicAuth('me', '{MARK}')"),
        ("t.ts", "t = process.env.TOKEN ?? 'x'", f"t = process.env.TOKEN ?? '{MARK}'"),
        ("t.rs", 'const API_KEY: &str = "x";', f'const API_KEY: &str = "{MARK}";'),
        ("t.go", 'const Token string = "x"', f'const Token string = "{MARK}"'),
        ("a.ps1", '$env:API_KEY = "x"', f'$env:API_KEY = "{MARK}"'),
        (".env", 'DB="Uid=me;Pwd=x;Port=1"', f'DB="Uid=me;Pwd={MARK}"'),
        ("run.sh", "az login -u me -p x", f"az login -u me -p {MARK}"),
        ("run.sh", "http --auth me:x h", f"http --auth me:{MARK} h"),
        ("c.yaml", "run: redis-server --requirepass x", f"run: redis-server --requirepass {MARK}"),
        (
            "c.xml",
            '<property name="password">x</property>',
            f'<property name="password">{MARK}</property>',
        ),
        ("a.sql", "SET PASSWORD FOR 'me' = 'x';", f"SET PASSWORD FOR 'me' = '{MARK}';"),
        ("d.md", "The API key: x", f"The API key: {MARK}"),
        ("c.yaml", "stringData: {a: x}", f"stringData: {{a: {MARK}}}"),
        (
            "c.json",
            '{"password": "x", "k": "-----BEGIN PRIVATE KEY-----a-----END"}',
            f'{{"password": "{MARK}", "k": "-----BEGIN PRIVATE KEY-----{MARK}-----END"}}',
        ),
    ],
)
def test_a_value_beside_the_name_of_a_secret_is_redacted(
    file: str, line: str, redacted: str
) -> None:
    assert redact_diff(diff_of(file, "a = 1", line, "b = 2")) == diff_of(
        file, "a = 1", redacted, "b = 2"
    )


@pytest.mark.parametrize(
    "token",
    [
        f"AIza{'a' * 35}",
        f"ak-{'aB1' * 7}x",
        f"npm_{'a' * 36}",
        f"pypi-AgEI{'a' * 60}",
        f"sk_live_{'a' * 24}",
        f"SG.{'a' * 22}.{'b' * 43}",
        f"nvapi-{'a' * 60}",
        f"dckr_pat_{'a' * 27}",
        f"123456789:AA{'a' * 33}",
        f"dapi{'a' * 32}",
        f"lin_api_{'a' * 40}",
        "ASIAIOSFODNN7EXAMPLE",
    ],
)
def test_tokens_of_well_known_services_need_no_name(token: str) -> None:
    assert redact_diff(diff_of("t.py", f"x = '{token}'")) == diff_of("t.py", f"x = '{MARK}'")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("t.py", "def login(token: str, password: str | None = None) -> None:"),
        ("t.py", "api_key = os.environ['HF_TOKEN']"),
        ("t.py", "login(token=token, key=config.api_key)"),
        ("t.py", "pad_token = '<pad>'"),
        ("t.py", "lr: float = 1e-3"),
        ("t.py", "tokens = tokenizer('password')"),
        ("c.yaml", "api_key: ${oc.env:API_KEY}"),
        ("c.yaml", "password: null"),
        ("c.yaml", "password:"),
        ("c.yaml", "name: my_model"),
        ("t.py", 'add_argument("--lr", default="x")'),
        ("d.md", "--- password protected pages"),
        ("run.sh", "train --epochs 3"),
        ("c.xml", "<name>x</name>"),
        ("run.sh", "git clone https://me@h.org/x"),
        ("run.sh", 'export TOKEN="$(cat token)"'.replace('"', "")),
        ("run.sh", "HF_TOKEN=$TOKEN train"),
        ("d.md", "see https://example.org:8080/@me"),
        ("t.py", "secrets = [modal.Secret.from_name('wandb-secret')]"),
        ("t.py", "tokens = ['a', 'b']"),
        ("c.toml", "keys = ['a', 'b']"),
        ("t.py", "x = 'fw_bw_ratio' + 'key-value-store-of-experiments'"),
        ("c.yaml", "url: postgres://me:${PASSWORD}@db/x"),
        ("c.yaml", "data: {a: x}"),
        ("c.xml", '<property name="user">x</property>'),
        ("d.md", "a password or a token is needed"),
    ],
)
def test_what_is_no_secret_is_left(file: str, line: str) -> None:
    assert redact_diff(diff_of(file, line)) == diff_of(file, line)


def test_secrets_of_several_lines_are_redacted_to_their_end() -> None:
    key = ["-----BEGIN RSA PRIVATE KEY-----", "MIIE", "", "abc=", "-----END RSA PRIVATE KEY-----"]
    clean = redact_diff(diff_of("id_rsa", *key, "after"))
    assert clean == diff_of("id_rsa", key[0], MARK, "", MARK, key[-1], "after")
    block = ["db:", "  password: |-", "    one", "", "      two", "  user: me"]
    clean = redact_diff(diff_of("c.yaml", *block))
    assert clean == diff_of("c.yaml", *block[:2], f"    {MARK}", "", f"      {MARK}", block[-1])
    code = ['api_key = """one', "two", 'three""" + x', "four"]
    clean = redact_diff(diff_of("t.py", *code))
    assert clean == diff_of("t.py", f'api_key = """{MARK}', MARK, f'{MARK}""" + x', "four")
    for file, lines in (
        ("c.yaml", ["password:", "  one", "user: me"]),
        ("c.yaml", ["- name: API_KEY", "  value: one", "user: me"]),
        ("c.yaml", ["api_key: 'one", "  two'", "user: me"]),
        (".env", ['API_KEY="one', 'two"', "user=me"]),
        ("k.asc", ["-----BEGIN PGP PRIVATE KEY BLOCK-----", "one", "two", "-----END PGP", "me"]),
        ("t.py", ["api_key = (", "    'one'", "    'two'", ")", "user = 'me'"]),
        ("t.py", ["password = \\", "    'one'", "user = 'me'"]),
        ("c.yaml", ["secrets:", "  openai: one", "  - two", "user: me"]),
        ("c.toml", ["[secrets]", "openai = 'one'", "[model]", "name = 'me'"]),
        ("c.ini", ["[api]", "key=one", "url=me"]),
        ("c.json", ['"password":', '  "one"', '"user": "me"']),
        ("t.py", ["passwords = [", "    'one',", "    'two',", "]", "user = 'me'"]),
        ("t.tf", ['variable "db_password" {', '  default = "one"', "}", 'user = "me"']),
        ("t.tf", ['variable "db_password" {', "  type = string", '  default = "one"', "}"]),
        ("c.yaml", ["client_secret: !vault |", "  one", "user: me"]),
        ("c.yaml", ["kind: Secret", "data:", "  a: one", "metadata:", "  name: me"]),
    ):
        expected = [line.replace("one", MARK).replace("two", MARK) for line in lines]
        assert redact_diff(diff_of(file, *lines)) == diff_of(file, *expected)
    kept = ["password:", "  from: vault", "user: me"]
    assert redact_diff(diff_of("c.yaml", *kept)) == diff_of("c.yaml", *kept)
    one_line = 'KEY = "-----BEGIN PRIVATE KEY-----\\nMIIE\\n-----END PRIVATE KEY-----"'
    assert "MIIE" not in redact_diff(diff_of("t.py", one_line))


def test_removed_and_surrounding_lines_are_redacted_but_not_names_of_files(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.email=a@b", "-c", "user.name=n", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q", ".")
    (tmp_path / "api_key: x").write_text("password=one\na\n-- token=two\n")
    git("add", "-A")
    git("commit", "-qm", "first")
    (tmp_path / "api_key: x").write_text("password=one\nb\n")
    diff = git("diff")
    clean = redact_diff(diff)
    assert clean == diff.replace("one", MARK).replace("two", MARK)
    assert "--- a/api_key: x" in clean
    assert f"--- token={MARK}" in clean


LONG = [
    *("a" * 200_000, "a=" * 50_000, '"' * 100_000, "x: y" * 50_000, "'" * 50_001, "<a>" * 50_000),
    *("://" * 50_000, "://a:b@" * 20_000, "secrets = ['a'," * 10_000, "get('a'," * 20_000),
    *(
        word * 30_000
        for word in ("token: ", "--a b ", "--token ", "password ", "curl -u ", "keys: ")
    ),
    *(
        " " * 2_000 + word * 10_000
        for word in (
            "token=$x ",
            '"token": {',
            "eyJ-",
            "login ",
            '<a name="b">',
            "a: &b ",
            "api key ",
            ";pwd",
            "a or ",
            "SET PASSWORD ",
            "!a ",
        )
    ),
    *(word + " " * 100_000 + "x" for word in ("token=x", "a:", "keys: - a", "[x", "token: |")),
    "Secret.from_dict({" * 10_000,
    " ".join(f"http://u:p{number}@h" for number in range(10_000)),
]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["js", "yaml"])
def test_long_lines_take_no_time(suffix: str) -> None:
    started = time.process_time()
    for line in LONG:
        redact_diff(diff_of(f"t.{suffix}", line))
    # one expression that backtracks takes minutes
    assert time.process_time() - started < 60


def test_each_collection_of_secrets_in_a_line_is_redacted_and_the_lines_after_it_are_kept() -> None:
    calls = "a = Secret.from_dict({'k': 'one'}), Secret.from_dict({'k': 'two'})\nx = 'three'"
    clean = redact_diff(diff_of("t.py", calls))
    assert calls.replace("one", MARK).replace("two", MARK) in clean.replace("\n+", "\n")
