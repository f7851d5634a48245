//! The tour's chapters on three brokers.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::UNIX_EPOCH;

use super::{PROMPTS, Step, TOUR, masked, path, read, steps};
use crate::support::{PATIENCE, Program, free_port, poll_until};
use crate::tty::{CTRL_D, Tty};

/// The brokers' ports in the tour, which stand for others.
const PORTS: [&str; 3] = ["9192", "9193", "9194"];

/// What may be said as well, which the tour tells in prose: the first start downloads Kafka, and a chat may report that
/// a killed leader has no successor yet.
const NOTICES: [&str; 3] = [
    "kafka: fetching Kafka ",
    "* lines are not acknowledged yet: ",
    "* lines are acknowledged again",
];

/// What is typed for Ctrl-D.
const END: &str = "^D";

/// A folder with clusters, which are stopped when this is dropped.
struct Clusters(tempfile::TempDir);

impl Drop for Clusters {
    fn drop(&mut self) {
        // What this cannot stop, scripts/test-kafka stops.
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kafka");
        let stop = Program::other(script, &["stop"]).env("KAFKA_CHAT_CLUSTERS", self.0.path());
        let _ = stop.into_command().status();
    }
}

/// A shell on a terminal, in the folder of the checkout.
struct Terminal {
    tty: Tty,
    /// All that must have appeared, but for the last prompt.
    expected: String,
}

impl Terminal {
    fn open(clusters: &Path) -> Terminal {
        let setup = "unset KAFKA_BOOTSTRAP_SERVERS KAFKA_CHAT_SECRET_FILE; exec sh";
        let tty = Program::other("sh", &["-c", setup])
            .env("PATH", path())
            .env("PS1", PROMPTS[0])
            .env("TZ", noon())
            .env("KAFKA_CHAT_CLUSTERS", clusters)
            .on_a_terminal();
        Terminal {
            tty,
            expected: String::new(),
        }
    }

    /// Types what the step says once all before it has appeared, and waits for what must follow.
    fn run(&mut self, step: &Step<'_>) {
        if !step.prompt.is_empty() {
            self.wait_for(&[step.prompt]);
        }
        match step.command {
            "" => {}
            END => {
                self.tty.keys(CTRL_D);
                self.expected += step.prompt.trim_end();
                self.expected += "\n";
            }
            line => {
                self.tty.line(line);
                self.expected += &format!("{}{line}\n", step.prompt);
            }
        }
        self.expected += &step.expected;
        self.wait_for(&PROMPTS);
    }

    /// Waits until exactly the expected is there, but for [`NOTICES`], and after it one of these prompts.
    fn wait_for(&self, prompts: &[&str]) {
        let shown = || {
            let history = self.tty.history();
            let is_notice = |line: &&str| NOTICES.iter().any(|notice| line.starts_with(notice));
            let lines = history.trim_end().lines().map(str::trim_end);
            let lines: Vec<&str> = lines.filter(|line| !is_notice(line)).collect();
            masked(lines.join("\n"), &self.expected)
        };
        let is_there = || {
            let shown = shown();
            let rest = shown.strip_prefix(&self.expected)?;
            prompts
                .iter()
                .any(|prompt| rest == prompt.trim_end())
                .then_some(())
        };
        let what = || format!("exactly\n{}but\n{}", self.expected, shown());
        poll_until(PATIENCE * 3, what, is_there);
    }
}

/// A time zone in which no day ends during the test: what was sent on another day has no time, but a date.
fn noon() -> String {
    let hour = UNIX_EPOCH.elapsed().unwrap().as_secs() / 3600 % 24;
    format!("NOON{}", hour as i64 - 12)
}

/// A port that is free, as are the two after it. No other test gets any of them.
fn three_ports() -> u16 {
    loop {
        let ports = [free_port(), free_port(), free_port()];
        if ports[1] == ports[0] + 1 && ports[2] == ports[1] + 1 {
            return ports[0];
        }
    }
}

pub(crate) fn every_command_prints_what_the_tour_says() {
    let mut page = read(TOUR);
    for (port, free) in PORTS.iter().zip(three_ports()..) {
        page = page.replace(port, &free.to_string());
    }
    let clusters = Clusters(tempfile::tempdir().unwrap());
    let mut terminals = BTreeMap::new();
    let steps = steps(&page);
    let mut steps = steps
        .iter()
        .filter(|step| !step.terminal.is_empty())
        .peekable();
    assert!(
        steps.peek().is_some(),
        "the tour has no commands for a real Kafka"
    );
    for step in steps {
        let open = || Terminal::open(clusters.0.path());
        terminals
            .entry(step.terminal)
            .or_insert_with(open)
            .run(step);
    }
}
