"""What scripts that run Kafka share: its jars, the programs they need, and how they report errors."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

CACHE = Path(
    os.environ.get("KAFKA_CHAT_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kafka-chat"
)
TESTED = ("2.7.0", "3.9.1", "4.3.1")
FETCH_ATTEMPTS = 2


class Failure(Exception):
    """What went wrong, in a sentence for the user."""


def say(text):
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)


def exit_code_of(main):
    """Runs a program's main function. Failures are printed; signals unwind it, so that it can clean up."""

    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number, _frame):
        # Once: the clean-up must not be interrupted.
        for name in names:
            signal.signal(name, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for name in names:
        signal.signal(name, interrupt)
    try:
        return main()
    except (Failure, OSError) as error:
        say(error)
        return 1


def program(name, package):
    """The path of a program, or a Failure that names its Debian package."""
    home = os.environ.get("JAVA_HOME")
    if name == "java" and home and os.access(f"{home}/bin/java", os.X_OK):
        return f"{home}/bin/java"
    found = shutil.which(name)
    if not found:
        raise Failure(f"{name} is missing (Debian: apt-get install {package})")
    return found


def is_kraft(version):
    """Whether this version runs without ZooKeeper here: 3.5 is the first that can have SCRAM users so."""
    return tuple(int(part) for part in version.split(".")[:2]) >= (3, 5)


def maven_errors(output):
    """The reason that Maven gives: its error lines, without the advice after them; or all, if it gives none."""
    output = re.sub(r"\x1b\[[\d;]*m", "", output).strip()
    errors = re.findall(r"^\[ERROR\] (.+?)(?: -> \[Help \d+\])?$", output.split("\n[ERROR] \n")[0], re.MULTILINE)
    return "\n".join(errors) or output


def jars(version):
    """The folder with this version's jars. Maven fetches them the first time."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise Failure(f"a version looks like {TESTED[-1]}, not {version!r}")
    folder = CACHE / f"kafka-{version}" / "libs"
    if folder.is_dir():
        return folder
    wanted = [("org.apache.kafka", "kafka_2.13", version), ("org.slf4j", "slf4j-simple", "1.7.36")]
    if is_kraft(version):  # before, the tools were part of kafka_2.13
        wanted.append(("org.apache.kafka", "kafka-tools", version))
    dependencies = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{of}</version>"
        "<exclusions><exclusion><groupId>org.slf4j</groupId><artifactId>slf4j-reload4j</artifactId></exclusion>"
        "</exclusions></dependency>"
        for group, artifact, of in wanted
    )
    say(f"fetching Kafka {version} with Maven into {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        Path(work, "pom.xml").write_text(
            "<project><modelVersion>4.0.0</modelVersion><groupId>kafka-chat</groupId><artifactId>jars</artifactId>"
            f"<version>1</version><dependencies>{dependencies}</dependencies></project>"
        )
        options = ["-B", "-q", "-U", "-Dstyle.color=never", "-DincludeScope=runtime", f"-DoutputDirectory={work}/libs"]
        maven = [program("mvn", "maven"), *options, "dependency:copy-dependencies"]
        for _ in range(FETCH_ATTEMPTS):
            done = subprocess.run(maven, cwd=work, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if done.returncode == 0:
                break
        else:
            raise Failure(f"Maven could not fetch Kafka {version}:\n{maven_errors(done.stdout + done.stderr)}")
        try:
            os.rename(f"{work}/libs", folder)
        except OSError:  # another program was faster
            if not folder.is_dir():
                raise
    return folder


def java(version, heap, main, *arguments):
    """The command that runs a class of Kafka's jars."""
    return [program("java", "default-jre-headless"), f"-Xmx{heap}", "-cp", f"{jars(version)}/*", main, *arguments]


def write_properties(path, properties):
    path.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))


def read_properties(path):
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
