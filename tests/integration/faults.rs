//! No line is lost, doubled or reordered when programs are killed or stopped, or connections break.
//!
//! Several publishers send numbered lines while faults are injected. At the end the log is compared
//! with the lines that the publishers were given, and with their own accounts. `cargo test` runs a few
//! rounds; `full`, run by `scripts/test-faults`, has many, and real Kafkas.

mod away;
#[cfg(feature = "librdkafka")]
mod chaos;
mod check;
pub(crate) mod full;
mod load;
pub(crate) mod proxy;
#[cfg(target_os = "linux")]
mod soak;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kafka_chat::client;
use kafka_chat::wire::{FETCH, PRODUCE};

use self::check::{Report, check};
use self::load::{Chance, Load, account};
use self::proxy::{Fault, Proxy};
use crate::sealed::Secrets;
use crate::support::{Kafka, PATIENCE, Program, Running, poll_until, user};

/// How many publishers send at the same time.
const SENDERS: usize = 4;

/// The size of a run.
struct Plan {
    /// How many faults are injected.
    rounds: u64,
    /// How many lines are sent in all.
    lines: u64,
    /// The seed of all random choices.
    seed: u64,
    /// The deadline of the last acknowledgements.
    patience: Duration,
    /// With these, lines are sealed.
    secrets: Option<Secrets>,
}

impl Plan {
    /// A plan for `cargo test`.
    fn small(rounds: u64) -> Plan {
        Plan {
            rounds,
            lines: 4000,
            seed: seed(),
            // A publisher gives up by itself before that.
            patience: PATIENCE * 3,
            secrets: None,
        }
    }

    /// The same with sealed lines.
    fn sealed(self) -> Plan {
        Plan {
            secrets: Some(Secrets::new()),
            ..self
        }
    }

    /// A program that writes or reads the lines.
    fn program(&self, on: &Kafka, name: &str, arguments: &[&str]) -> Program {
        let program = on.program(name, arguments);
        match &self.secrets {
            Some(secrets) => program.secret(secrets.ours()),
            None => program,
        }
    }
}

/// One round of a run.
struct Round<'a> {
    /// Its number, from 0 on.
    number: u64,
    /// The topic that is written to.
    topic: &'a str,
    load: &'a Load,
    reader: &'a Running,
    /// How much the reader had printed before the round before this one.
    printed: usize,
    /// The last line of that round.
    start: u64,
    /// The last line of its first half.
    middle: u64,
    /// Its last line.
    end: u64,
}

impl Round<'_> {
    /// Allows all lines of this round.
    fn allow_all(&self) {
        self.load.allow(self.end);
    }

    /// Waits for the last round's lines, since a fault must not hit programs that have not recovered from the last
    /// one. Then allows the first half of the lines, and waits until all are given and the reader prints more than
    /// before.
    fn allow_half(&self) {
        for sender in self.load.senders() {
            let line = format!("{sender} {}\n", self.start);
            self.reader.wait_for_after(self.printed, &line);
        }
        let printed = self.reader.stdout.bytes().len();
        self.load.allow(self.middle);
        self.load.wait_until_given(self.middle - 1);
        self.reader.wait_for_bytes(printed + 1);
    }

    /// Allows the first half of the lines, calls `stop` after a pause, while some are in flight, and then allows the
    /// rest. Returns what `stop` does.
    fn interrupt<T>(&self, pause: Duration, stop: impl FnOnce() -> T) -> T {
        self.allow_half();
        thread::sleep(pause);
        let stopped = stop();
        self.allow_rest();
        stopped
    }

    /// Allows the other half, and waits until each publisher was given some of it. While the broker is
    /// stopped, these lines are certainly in flight.
    fn allow_rest(&self) {
        self.load.allow(self.end);
        self.load.wait_until_given(self.middle);
    }
}

/// Has lines sent and read by way of `on`, lets `inject` cause a fault in each round, and compares the
/// log with the senders' accounts, and with the output of the reader. Of sealed lines, readers also say none that
/// are missing or repeated: they would end with 1.
fn run(on: &Kafka, plan: &Plan, mut inject: impl FnMut(Round<'_>)) -> Report {
    let topic = user("log");
    let each = plan.lines / SENDERS as u64;
    assert!(each >= 2 * plan.rounds, "too few lines for so many rounds");
    let read = [&topic, "--from", "earliest", "-s"];
    let reader = plan.program(on, "subscriber", &read).start();
    let publisher = |name: &str| plan.program(on, "publisher", &[name, &topic]);
    let load = Load::start(publisher, SENDERS, each, plan.seed);
    // A fault while one starts is another test's.
    load.allow(1);
    let (mut printed, mut start) = (0, 1);
    for number in 0..plan.rounds {
        let (before, end) = (printed, each * (number + 1) / plan.rounds);
        printed = reader.stdout.bytes().len();
        inject(Round {
            number,
            topic: &topic,
            load: &load,
            reader: &reader,
            printed: before,
            start,
            middle: each * (2 * number + 1) / (2 * plan.rounds),
            end,
        });
        start = end;
    }
    let sent = load.end(plan.patience);
    let log = plan.program(on, "subscriber", &read).arg("-e").start();
    let log = log.wait_within(plan.patience).code(0).stdout;
    let report = check(&sent, &log);
    reader.wait_for_bytes(log.len());
    assert!(
        reader.stdout.bytes() == log,
        "the reader has printed something else: {}\nthe log: {report}",
        check(&sent, &reader.stdout.bytes())
    );
    reader.signal("INT");
    reader.wait().code(0);
    report
}

/// The seed in the environment, to repeat a run, or a new one. It is part of a failure's message.
fn seed() -> u64 {
    let given = std::env::var("KAFKA_CHAT_TEST_SEED").ok();
    given.map_or_else(
        || std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64,
        |seed| seed.parse().unwrap(),
    )
}

#[track_caller]
fn assert_clean(report: Report, seed: u64) {
    assert!(report.is_clean(), "{report}; KAFKA_CHAT_TEST_SEED={seed}");
}

/// Programs that host the small broker in turn: when the first one ends, the second takes over.
///
/// Publishers and readers use `-b` and never host, so that the host is known.
struct Hosts {
    on: Kafka,
    port: u16,
    hosts: VecDeque<Running>,
}

impl Hosts {
    fn new() -> Hosts {
        let on = Kafka::embedded();
        let Kafka::Embedded { port, .. } = on else {
            unreachable!()
        };
        on.send("nobody", "ready", "x\n");
        let mut hosts = Hosts {
            on,
            port,
            hosts: VecDeque::new(),
        };
        hosts.add();
        hosts.add();
        hosts
    }

    /// Adds a program that is ready to take over.
    fn add(&mut self) {
        let host = self.on.reader("ready");
        host.wait_for("x\n");
        self.hosts.push_back(host);
    }

    /// The broker for clients that never host it.
    fn clients(&self) -> Kafka {
        self.on.by_address()
    }

    /// Stops the host: it answers nothing until it is resumed or killed.
    fn stop(&self) {
        self.hosts[0].signal("STOP");
    }

    fn resume(&self) {
        self.hosts[0].signal("CONT");
    }

    /// Kills the host, and returns how long it took until the next one served.
    fn kill(&mut self) -> Duration {
        let host = self.hosts.pop_front().unwrap();
        host.signal("KILL");
        let killed = Instant::now();
        host.wait();
        let what = || "served by the next host".into();
        poll_until(PATIENCE, what, || serves(self.port).then_some(()));
        let took = killed.elapsed();
        self.add();
        took
    }
}

/// Whether a broker answers at this port of 127.0.0.1: an `ApiVersions` request of version 0.
fn serves(port: u16) -> bool {
    let broker = client::ask(&[format!("127.0.0.1:{port}")], PATIENCE);
    broker.is_ok_and(|broker| broker.is_small_broker())
}

#[test]
fn no_line_is_lost_when_hosts_are_killed_while_lines_are_in_flight() {
    hosts_are_killed(&Plan::small(4));
}

#[test]
fn no_sealed_line_is_lost_when_hosts_are_killed_while_lines_are_in_flight() {
    hosts_are_killed(&Plan::small(4).sealed());
}

fn hosts_are_killed(plan: &Plan) {
    let mut hosts = Hosts::new();
    let mut chance = Chance::new(plan.seed);
    let report = run(&hosts.clients(), plan, |round| {
        round.interrupt(chance.pause(30), || hosts.stop());
        hosts.kill();
    });
    assert_clean(report, plan.seed);
}

#[test]
fn no_line_is_lost_when_the_host_is_stopped_for_a_while() {
    let hosts = Hosts::new();
    let plan = Plan::small(1);
    let mut chance = Chance::new(plan.seed);
    let report = run(&hosts.clients(), &plan, |round| {
        round.interrupt(chance.pause(30), || hosts.stop());
        thread::sleep(Duration::from_secs(2));
        hosts.resume();
    });
    assert_clean(report, plan.seed);
}

#[test]
fn no_line_is_lost_when_responses_are_lost_or_cut_off() {
    responses_are_lost(&Plan::small(6));
}

#[test]
fn no_sealed_line_is_lost_when_responses_are_lost_or_cut_off() {
    responses_are_lost(&Plan::small(6).sealed());
}

fn responses_are_lost(plan: &Plan) {
    let hosts = Hosts::new();
    let proxy = Proxy::of(hosts.port);
    let faults = [
        Fault::SwallowAcknowledgement,
        Fault::ResetInAnswer(PRODUCE),
        Fault::ResetInAnswer(FETCH),
    ];
    let report = run(&Kafka::Real(proxy.server()), plan, |round| {
        proxy.arm(faults[round.number as usize % faults.len()]);
        round.allow_all();
        proxy.wait();
    });
    assert_clean(report, plan.seed);
}

#[test]
fn no_line_is_lost_when_each_host_ends_while_the_others_go_on() {
    const PUBLISHERS: u64 = 12;
    const LINES: u64 = 20;
    let on = Kafka::embedded();
    let topic = user("log");
    let start = |n| {
        let name = user(&format!("s{n}"));
        let publisher = on.program("publisher", &[&name, &topic]).start();
        (name, publisher)
    };
    let mut publishers = VecDeque::from([start(0)]);
    publishers[0].1.wait_for_notice("small broker of its own");
    publishers.extend((1..PUBLISHERS).map(start));
    // One ends after each round. Whenever it was the host, one of the others takes over.
    let mut sent = Vec::new();
    for round in 0..PUBLISHERS {
        for (name, publisher) in &mut publishers {
            let numbers = round * LINES + 1..=(round + 1) * LINES;
            publisher.write(numbers.map(|n| format!("{name} {n}\n")).collect::<String>());
        }
        let (name, mut publisher) = publishers.pop_front().unwrap();
        publisher.close();
        let ended = publisher.wait().code(0);
        sent.push(account(name, (round + 1) * LINES, &ended));
    }
    let report = check(&sent, &on.log_bytes(&topic, &["-s"]));
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.lines, LINES * PUBLISHERS * (PUBLISHERS + 1) / 2);
}

#[test]
fn a_line_with_a_lost_acknowledgement_is_in_the_log_once_beside_other_writers() {
    let hosts = Hosts::new();
    let proxy = Proxy::of(hosts.port);
    let topic = user("log");
    let clients = hosts.clients();
    let mut busy = clients
        .program("publisher", &[&user("busy"), &topic])
        .start();
    let is_over = Arc::new(AtomicBool::new(false));
    let until = is_over.clone();
    let busy = thread::spawn(move || {
        while !until.load(Ordering::Relaxed) && busy.try_write("x\n") {
            // A load that leaves room for others.
            thread::sleep(Duration::from_millis(2));
        }
    });
    clients.first_lines(&topic, 10);
    proxy.arm(Fault::SwallowAcknowledgement);
    let sender = user("sender");
    let ended = Kafka::Real(proxy.server())
        .program("publisher", &[&sender, &topic])
        .input(format!("{sender} 1\n"))
        .run();
    is_over.store(true, Ordering::Relaxed);
    busy.join().unwrap();
    proxy.wait();
    let log = clients.log_bytes(&topic, &["-s"]);
    let log: Vec<u8> = log
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| line.starts_with(sender.as_bytes()))
        .flatten()
        .copied()
        .collect();
    let report = check(&[account(sender, 1, &ended.code(0))], &log);
    assert!(report.is_clean(), "{report}");
}
