//! Many rounds, on the small broker and on real Kafkas: `scripts/test-faults` runs them.
//!
//! The small broker is served by crate `kafka`, which reads a line back when its acknowledgement is lost; a
//! real Kafka by librdkafka, whose producer is idempotent, or in a build without it by crate `kafka`.
//!
//! `KAFKA_CHAT_TEST_ROUNDS` and `KAFKA_CHAT_TEST_LINES` make a run smaller; `KAFKA_CHAT_TEST_SEED` repeats one.

use std::fmt::Arguments;
use std::io::{Write, stdout};
use std::thread;
use std::time::Duration;

use kafka_chat::wire::{FETCH, PRODUCE};

use super::check::{Report, check};
use super::load::{Chance, account};
use super::proxy::{Fault, Proxy};
use super::{Hosts, Plan, run, seed};
use crate::kafka::cluster;
use crate::support::{A_DAY, Kafka, PATIENCE, Program, free_port, poll_until, setting, user};
#[cfg(feature = "librdkafka")]
use crate::support::{Ended, Running, contains};
use crate::tty::{CTRL_C, CTRL_D};

/// What the proxy does, in turn.
const FAULTS: [Fault; 5] = [
    Fault::SwallowAcknowledgement,
    Fault::ResetInAnswer(PRODUCE),
    Fault::ResetInAnswer(FETCH),
    Fault::HalfOpenAcknowledgement,
    Fault::HalfOpen,
];

/// How long a broker is stopped.
const STOPPED: Duration = Duration::from_secs(20);

/// A plan of so many rounds, or as many as the environment allows.
pub(super) fn plan(rounds: u64) -> Plan {
    let number = |name| Some(std::env::var(name).ok()?.parse().unwrap());
    Plan {
        rounds: number("KAFKA_CHAT_TEST_ROUNDS").map_or(rounds, |most: u64| rounds.min(most)),
        lines: number("KAFKA_CHAT_TEST_LINES").unwrap_or(100_000),
        seed: seed(),
        // A publisher gives up by itself before that.
        patience: PATIENCE * 3,
        secrets: None,
    }
}

/// Prints figures past the test runner.
pub(super) fn print_figures(figures: Arguments<'_>) {
    let line = format!("\n{figures}\n");
    stdout().write_all(line.as_bytes()).unwrap();
}

#[track_caller]
pub(super) fn conclude(what: &str, plan: &Plan, report: Report) {
    let Plan { rounds, seed, .. } = plan;
    let sealed = plan.secrets.as_ref().map_or("", |_| ", sealed");
    print_figures(format_args!(
        "{what}{sealed}, {rounds} rounds, seed {seed}: {report}"
    ));
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.undelivered, 0, "no fault lasts for two minutes");
}

/// Injects each fault of the proxy in turn.
fn through_a_proxy(what: &str, port: u16) {
    let proxy = Proxy::of(port);
    let plan = plan(15);
    let mut chance = Chance::new(plan.seed);
    let report = run(&Kafka::Real(proxy.server()), &plan, |round| {
        proxy.arm(FAULTS[round.number as usize % FAULTS.len()]);
        round.allow_all();
        // A half-open connection is noticed when a request times out.
        proxy.wait_within(PATIENCE * 3);
        thread::sleep(chance.pause(200));
    });
    conclude(what, &plan, report);
}

#[test]
#[ignore = "takes long"]
fn embedded_hosts_that_are_killed_lose_no_line() {
    hosts_are_killed(&plan(50));
}

#[test]
#[ignore = "takes long"]
fn embedded_hosts_that_are_killed_lose_no_sealed_line() {
    hosts_are_killed(&plan(50).sealed());
}

fn hosts_are_killed(plan: &Plan) {
    let mut hosts = Hosts::new();
    let mut chance = Chance::new(plan.seed);
    let mut took = Vec::new();
    let report = run(&hosts.clients(), plan, |round| {
        round.interrupt(chance.pause(40), || hosts.stop());
        took.push(hosts.kill());
    });
    took.sort();
    let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
    print_figures(format_args!(
        "takeover: median {median:.0?}, longest {longest:.0?}"
    ));
    conclude("embedded, hosts killed", plan, report);
}

#[test]
#[ignore = "takes long"]
fn embedded_host_that_is_stopped_for_a_while_loses_no_line() {
    let hosts = Hosts::new();
    let plan = plan(2);
    let mut chance = Chance::new(plan.seed);
    let report = run(&hosts.clients(), &plan, |round| {
        round.interrupt(chance.pause(60), || hosts.stop());
        thread::sleep(STOPPED);
        hosts.resume();
    });
    conclude("embedded, host stopped", &plan, report);
}

#[test]
#[ignore = "takes long"]
fn embedded_broker_loses_no_line_when_connections_break() {
    let hosts = Hosts::new();
    through_a_proxy("embedded, connections broken", hosts.port);
}

/// Hosts the small broker on a disk of its own, and fills and empties that on command.
const DISK: &str = r#"
    mount -t tmpfs -o size=48m tmpfs "$1"
    "$SUBSCRIBER" host "--embedded=$2" --data-dir "$1/log" &
    n=0
    while read -r word; do
        case $word in
        fill) head -c 48m /dev/zero > "$1/ballast" || true ;;
        free) rm "$1/ballast" ;;
        esac
        echo "$word $((++n))"
    done
    kill "$!"
"#;

#[test]
#[ignore = "takes long; needs to mount a small disk (unshare)"]
fn embedded_broker_loses_no_line_when_its_disk_is_full() {
    let (disk, port) = (tempfile::tempdir().unwrap(), free_port());
    let mut broker = Program::other("unshare", &["-rm", "bash", "-euc", DISK, "bash"])
        .arg(disk.path())
        .arg(port.to_string())
        .env("SUBSCRIBER", env!("CARGO_BIN_EXE_subscriber"))
        .start();
    broker.wait_for_notice("a small broker of its own");
    let on = Kafka::Real(format!("127.0.0.1:{port}"));
    let plan = plan(20);
    let mut chance = Chance::new(plan.seed);
    let report = run(&on, &plan, |round| {
        round.interrupt(chance.pause(30), || {
            broker.write("fill\n");
            broker.wait_for(&format!("fill {}\n", 2 * round.number + 1));
            // Larger than what a full disk could still hold.
            on.program("publisher", &["eve", "probe", "--delivery-timeout", "1"])
                .input([b'x'; 10_000])
                .run()
                .code(1)
                .says(&["the broker could not use its log"]);
        });
        broker.write("free\n");
        broker.wait_for(&format!("free {}\n", 2 * round.number + 2));
    });
    broker.close();
    broker.wait();
    conclude("embedded, disk full", &plan, report);
}

/// The tests above could fail: without the read-back, the same faults double lines.
#[cfg(feature = "test-no-read-back")]
#[test]
#[ignore = "needs a build that does not read back"]
fn without_reading_back_lines_are_doubled() {
    let hosts = Hosts::new();
    let proxy = Proxy::of(hosts.port);
    let plan = Plan {
        rounds: 8,
        lines: 8000,
        ..plan(8)
    };
    let report = run(&Kafka::Real(proxy.server()), &plan, |round| {
        proxy.arm(Fault::SwallowAcknowledgement);
        round.allow_all();
        proxy.wait();
    });
    print_figures(format_args!(
        "without reading back, seed {}: {report}",
        plan.seed
    ));
    assert!(report.doubled > 0, "{report}");
    assert_eq!(report.lost, 0, "{report}");
}

/// The port of the only broker.
fn broker_port() -> u16 {
    let servers = setting("KAFKA_CHAT_TEST_SERVERS");
    let port = servers.strip_prefix("127.0.0.1:").unwrap();
    port.parse().unwrap()
}

/// A node of the cluster that was killed. It is restarted when this is dropped, also by a test that fails:
/// the next one needs it.
pub(super) struct Killed(String);

impl Killed {
    pub(super) fn node(node: &str) -> Killed {
        Killed::by("KILL", node)
    }

    /// Ended by this signal.
    pub(super) fn by(signal: &str, node: &str) -> Killed {
        cluster(&["signal", signal, node]);
        Killed(node.into())
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        cluster(&["start-node", &self.0]);
    }
}

pub(super) fn named(what: &str) -> String {
    format!("Kafka {}, {what}", setting("KAFKA_CHAT_TEST_VERSION"))
}

#[test]
#[ignore = "needs a real Kafka"]
fn one_broker_that_is_killed_loses_no_line() {
    broker_is_killed(&plan(20));
}

#[test]
#[ignore = "needs a real Kafka"]
fn one_broker_that_is_killed_loses_no_sealed_line() {
    broker_is_killed(&plan(20).sealed());
}

fn broker_is_killed(plan: &Plan) {
    let mut chance = Chance::new(plan.seed);
    let report = run(&Kafka::real(), plan, |round| {
        round.interrupt(chance.pause(150), || cluster(&["signal", "STOP", "1"]));
        drop(Killed::node("1"));
    });
    conclude(&named("broker killed"), plan, report);
}

#[test]
#[ignore = "needs a real Kafka"]
fn one_broker_that_is_stopped_for_a_while_loses_no_line() {
    let plan = plan(2);
    let mut chance = Chance::new(plan.seed);
    let report = run(&Kafka::real(), &plan, |round| {
        round.interrupt(chance.pause(150), || cluster(&["signal", "STOP", "1"]));
        thread::sleep(STOPPED);
        cluster(&["signal", "CONT", "1"]);
    });
    conclude(&named("broker stopped"), &plan, report);
}

#[test]
#[ignore = "needs a real Kafka"]
fn one_broker_loses_no_line_when_connections_break() {
    through_a_proxy(&named("connections broken"), broker_port());
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn one_broker_that_lists_no_broker_for_a_while_loses_no_line() {
    let proxy = Proxy::of(broker_port());
    let plan = plan(5);
    let mut chance = Chance::new(plan.seed);
    let report = run(&Kafka::Real(proxy.server()), &plan, |round| {
        round.interrupt(chance.pause(150), || proxy.arm(Fault::NoBrokers));
        // More than there are clients: some have asked again.
        proxy.wait_for_answers(8);
        proxy.disarm();
    });
    conclude(&named("no broker listed"), &plan, report);
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn one_broker_that_lists_no_broker_while_a_program_waits_for_its_topic_is_asked_again() {
    for _ in 0..5 {
        let proxy = Proxy::of(broker_port());
        let (me, topic) = (user("alice"), user("bob"));
        let waits = ["-n", "1", "-X", "allow.auto.create.topics=false", &topic];
        // It waits for ten seconds.
        let reader = Kafka::Real(proxy.server())
            .program("subscriber", &["--from", "earliest"])
            .args(waits)
            .start();
        // Before the first answer, the end of a connection is an error.
        proxy.wait_for_requests(|requests| {
            let all = requests.iter();
            let metadata = all.filter(|((_, api), _)| *api == kafka_chat::wire::METADATA);
            metadata.map(|(_, count)| count).sum::<u64>() > 5
        });
        proxy.arm(Fault::NoBrokers);
        proxy.wait_for_answers(1);
        cluster(&["topic", &topic]);
        proxy.disarm();
        let publisher = Kafka::real().program("publisher", &[&me, &topic]);
        publisher.input("one\n").run().code(0);
        reader.wait().code(0).prints("one\n");
    }
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn one_broker_that_refuses_the_first_batch_loses_no_line() {
    let on = Kafka::real();
    for _ in 0..5 {
        let proxy = Proxy::of(broker_port());
        let (me, topic) = (user("alice"), user("bob"));
        // Long enough that the proxy damages the line itself.
        let lines: String = (1..=8).map(|n| format!("{me} {n}\n")).collect();
        proxy.arm(Fault::Damage);
        let ended = Kafka::Real(proxy.server())
            // Each line is a batch, as when they are typed.
            .program("publisher", &[&me, &topic, "-X", "batch.num.messages=1"])
            .input(lines)
            .run()
            .code(0);
        proxy.wait();
        let log = on.log_bytes(&topic, &["-s"]);
        let report = check(&[account(me, 8, &ended)], &log);
        assert!(report.is_clean(), "{report}");
    }
    print_figures(format_args!(
        "{}: 5 times, nothing lost",
        named("the first batch refused")
    ));
}

#[test]
#[ignore = "needs a real Kafka"]
fn one_broker_that_is_away_delays_lines_and_not_the_end_of_a_chat() {
    let on = Kafka::real();
    let (me, peer) = (user("alice"), user("bob"));
    let alice = on.chat(&me, &peer);
    alice.line("zero");
    on.first_lines(&peer, 1);
    let broker = Killed::node("1");
    alice.wait_for(" lost (");
    alice.line("one");
    alice.line("two");
    drop(broker);
    alice.wait_for(" is back");
    let bob = on.chat_with(&peer, &me, &["--delivery-timeout", A_DAY]);
    bob.wait_for(&format!("{me}: two"));
    bob.line("three");
    alice.wait_for(&format!("{peer}: three"));
    let broker = Killed::node("1");
    bob.wait_for(" lost (");
    bob.line("never");
    bob.wait_for(&format!("> never\n{peer}>"));
    // It ends before the broker is back, and before the line is given up.
    bob.keys(CTRL_C);
    let bob = bob.ends_with(1);
    // Soon after the last one, an outage is told of only if it lasts for a while.
    alice.wait("a second loss on the screen", |screen| {
        screen.contents().matches(" lost (").count() == 2
    });
    drop(broker);
    bob.has_shown(&["1 of 2 lines may not have arrived", "not acknowledged yet"]);
    alice.wait("a second return on the screen", |screen| {
        screen.contents().matches(" is back").count() == 2
    });
    alice.keys(CTRL_D);
    let alice = alice.ends_with(0);
    alice.has_shown_times(" lost (", 2);
    alice.has_shown_times(" is back", 2);
    assert_eq!(on.log(&peer), "zero\none\ntwo\n");
}

#[test]
#[ignore = "needs a real Kafka of three brokers"]
fn three_brokers_that_lose_their_leader_lose_no_line() {
    leader_is_killed(&plan(10));
}

#[test]
#[ignore = "needs a real Kafka of three brokers"]
fn three_brokers_that_lose_their_leader_lose_no_sealed_line() {
    leader_is_killed(&plan(10).sealed());
}

fn leader_is_killed(plan: &Plan) {
    let mut chance = Chance::new(plan.seed);
    let report = run(&Kafka::real(), plan, |round| {
        let leader = leader_in_full_sync(round.topic);
        round.interrupt(chance.pause(150), || cluster(&["signal", "STOP", &leader]));
        let broker = Killed::node(&leader);
        // In some rounds it is back before another broker leads, in some it is not.
        thread::sleep(chance.pause(3000));
        drop(broker);
    });
    conclude(&named("leader killed"), plan, report);
}

#[test]
#[ignore = "needs a real Kafka of three brokers"]
fn three_brokers_of_which_too_few_are_left_acknowledge_no_line() {
    let on = Kafka::real();
    let (me, topic) = (user("alice"), user("bob"));
    let mut publisher = on
        .program("publisher", &[&me, &topic, "--delivery-timeout", "20"])
        .start();
    publisher.write(format!("{me} 1\n"));
    on.first_lines(&topic, 1);
    let leader = leader_in_full_sync(&topic);
    let others = ["1", "2", "3"].into_iter().filter(|node| *node != leader);
    let others: Vec<_> = others.map(Killed::node).collect();
    publisher.write(format!("{me} 2\n{me} 3\n"));
    publisher.close();
    #[cfg(feature = "librdkafka")]
    publisher.wait_for_notice("lines are not acknowledged yet: ");
    let ended = publisher.wait().code(1);
    #[cfg(feature = "librdkafka")]
    let ended = names_why_lines_waited(ended);
    drop(others);
    leader_in_full_sync(&topic);
    let log = on.log_bytes(&topic, &["-s"]);
    let sent = account(me, 3, &ended);
    let are_named = sent.undelivered.contains(&2) && sent.undelivered.contains(&3);
    assert!(are_named, "{}", ended.report());
    let report = check(&[sent], &log);
    print_figures(format_args!("{}: {report}", named("too few are left")));
    assert!(report.is_clean(), "{report}");
}

/// The reason for a line that was given up is the one that was told before.
#[cfg(feature = "librdkafka")]
fn names_why_lines_waited(ended: Ended) -> Ended {
    let (_, told) = ended.stderr.split_once("not acknowledged yet: ").unwrap();
    let why = told.lines().next().unwrap();
    let reason = format!("not acknowledged within 20 seconds ({why})");
    ended.says(&[&reason])
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka of three brokers"]
fn three_brokers_of_which_one_is_gone_say_that_lines_wait_for_replicas() {
    let on = Kafka::real();
    let (me, topic) = (user("alice"), user("bob"));
    cluster(&["topic", &topic]);
    cluster(&["configure", &topic, "min.insync.replicas=3"]);
    let mut publisher = on.program("publisher", &[&me, &topic]).start();
    publisher.write("one\n");
    on.first_lines(&topic, 1);
    let leader = leader_in_full_sync(&topic);
    let follower = ["1", "2", "3"].into_iter().find(|node| *node != leader);
    let follower = Killed::node(follower.unwrap());
    publisher.write("two\n");
    // At first it is still listed as in sync: then it is named.
    let causes = ["too few replicas", "no connection to "];
    let causes = causes.map(|cause| format!("lines are not acknowledged yet: {cause}"));
    let is_told = |bytes: &[u8]| causes.iter().any(|it| contains(bytes, it.as_bytes()));
    let is_told = publisher.stderr.wait(PATIENCE, is_told);
    assert!(is_told, "{}", publisher.report());
    drop(follower);
    publisher.wait_for_notice("lines are acknowledged again");
    publisher.close();
    publisher.wait().code(0);
    assert_eq!(on.log(&topic), "one\ntwo\n");
}

/// A publisher and a reader of a topic that is created again, with its leader. They know a later leader epoch than the
/// new topic has, and the new leader is as `is_wanted` says of the one before and the new one.
#[cfg(feature = "librdkafka")]
fn created_again(
    on: &Kafka,
    (me, topic): (&str, &str),
    is_wanted: fn(&str, &str) -> bool,
) -> (Running, Running, String) {
    cluster(&["topic", topic]);
    let mut publisher = on.program("publisher", &[me, topic]).start();
    let reader = on.reader(topic);
    let first = Killed::node(&leader_in_full_sync(topic));
    publisher.write("one\n");
    reader.wait_for("one\n");
    drop(first);
    let before = leader_in_full_sync(topic);
    let what = || format!("wanted leader of {topic}, which {before} leads");
    let leader = poll_until(PATIENCE, what, || {
        cluster(&["recreate", topic]);
        let leader = leader_in_full_sync(topic);
        is_wanted(&before, &leader).then_some(leader)
    });
    publisher.write("two\n");
    reader.wait_for("two\n");
    (publisher, reader, leader)
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka of three brokers"]
fn three_brokers_of_which_another_one_leads_a_topic_that_was_created_again_are_written_to() {
    let on = Kafka::real();
    let (me, topic) = (user("alice"), user("bob"));
    let (mut publisher, _reader, _) =
        created_again(&on, (&me, &topic), |before, leader| before != leader);
    publisher.close();
    publisher.wait().code(0);
    assert_eq!(on.log(&topic), "two\n");
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka of three brokers"]
fn three_brokers_of_which_a_follower_is_gone_store_a_line_once_in_a_topic_that_was_created_again() {
    let on = Kafka::real();
    let (me, topic) = (user("alice"), user("bob"));
    // The right leader, and an epoch that is too late.
    let (mut publisher, reader, leader) =
        created_again(&on, (&me, &topic), |before, leader| before == leader);
    cluster(&["configure", &topic, "min.insync.replicas=3"]);
    let follower = ["1", "2", "3"].into_iter().find(|node| *node != leader);
    let follower = Killed::node(follower.unwrap());
    // The leader has it, but no reader sees it as long as too few replicas have it.
    publisher.write("three\n");
    publisher.wait_for_notice("lines are not acknowledged yet");
    thread::sleep(STOPPED);
    drop(follower);
    reader.wait_for("three\n");
    publisher.close();
    publisher.wait().code(0);
    assert_eq!(on.log(&topic), "two\nthree\n");
}

/// The leader of the topic's only partition, once all three replicas are in sync.
pub(super) fn leader_in_full_sync(topic: &str) -> String {
    leader_of_three(&setting("KAFKA_CHAT_TEST_SERVERS"), topic)
}

/// The same, on any cluster.
pub(crate) fn leader_of_three(servers: &str, topic: &str) -> String {
    let what = || format!("three replicas of {topic} in sync");
    poll_until(PATIENCE, what, || {
        // `    partition 0, leader 2, replicas: 2,3,1, isrs: 2,3,1`
        let metadata = Program::other("kcat", &["-L", "-b", servers, "-t", topic]).run();
        let metadata = String::from_utf8(metadata.stdout).unwrap();
        metadata.lines().find_map(|line| {
            let (_, rest) = line.split_once("partition 0, leader ")?;
            let (leader, rest) = rest.split_once(',')?;
            let (_, in_sync) = rest.split_once("isrs: ")?;
            (leader != "-1" && in_sync.trim().split(',').count() == 3).then(|| leader.to_string())
        })
    })
}

#[test]
#[ignore = "needs a Kafka with ZooKeeper"]
fn zookeeper_that_is_killed_loses_no_line() {
    let plan = plan(5);
    let mut chance = Chance::new(plan.seed);
    let report = run(&Kafka::real(), &plan, |round| {
        drop(round.interrupt(chance.pause(150), || Killed::node("zookeeper")));
    });
    conclude(&named("ZooKeeper killed"), &plan, report);
}
