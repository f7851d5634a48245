//! What operators and accidents do to three brokers, at random, while pipes and two chats go on.
//!
//! Lines are written before, during and after each fault. A line that kcat reads must soon be shown.
//!
//! `KAFKA_CHAT_TEST_ROUNDS` is how often something happens (60, which takes ten minutes).

use std::borrow::Cow;
use std::collections::HashSet;
use std::thread;
use std::time::Duration;

use super::full::{Killed, conclude, leader_in_full_sync, named, plan, print_figures};
use super::load::Chance;
use super::{Round, run};
use crate::kafka::cluster;
use crate::support::{Kafka, PATIENCE, Program, Running, contains, poll_until, user};

/// The most milliseconds that a broker is stopped. After nine seconds, Kafka has its partitions led by others.
const STOPPED: u64 = 20_000;

/// How long a reader may show nothing while kcat reads a line. It is a promise, not a measure of speed.
const SILENCE: Duration = Duration::from_secs(15);

/// Two chats with each other: what one says, the other has to show.
struct Chats<'a> {
    on: &'a Kafka,
    /// Each is the topic that the chat at the same place reads.
    names: [String; 2],
    chats: [Running; 2],
    /// All lines, said by both.
    lines: Vec<String>,
    /// How often each topic was deleted.
    deletions: [usize; 2],
    /// The lines said while each topic was deleted: they may be gone with it, or be in the new one, too.
    doomed: [Vec<String>; 2],
    /// How many partitions each topic has.
    partitions: [u32; 2],
}

impl Chats<'_> {
    fn start(on: &Kafka) -> Chats<'_> {
        let names = ["ann", "ben"].map(user);
        for name in &names {
            cluster(&["topic", name]);
        }
        let [ann, ben] = &names;
        let chats =
            [[ann, ben], [ben, ann]].map(|[me, peer]| on.program("chat", &[me, peer]).start());
        Chats {
            on,
            names,
            chats,
            lines: Vec::new(),
            deletions: [0; 2],
            doomed: Default::default(),
            partitions: [1; 2],
        }
    }

    /// Both say a line.
    fn say(&mut self) {
        let line = format!("line {}.\n", self.lines.len());
        self.chats.iter_mut().for_each(|chat| chat.write(&line));
        self.lines.push(line);
    }

    /// Both say a line, and have to show the other's.
    fn talk(&mut self) {
        self.say();
        let last = &self.lines[self.lines.len() - 1..];
        let on = self.on;
        thread::scope(|scope| {
            for (topic, chat) in self.names.iter().zip(&self.chats) {
                scope.spawn(move || {
                    let log = shows_what_kcat_reads(on, topic, last, chat, 0);
                    let mut in_log = HashSet::new();
                    for line in log.split_inclusive(|byte| *byte == b'\n') {
                        let is_shown = contains(&chat.stdout.bytes(), line);
                        let is_good = is_shown && in_log.insert(line);
                        assert!(is_good, "{}{}\n{}", text(line), text(&log), chat.report());
                    }
                });
            }
        });
    }

    /// They talk while a fault lasts, which is so long.
    fn talk_until(&mut self, time: Duration, end: impl FnOnce() + Send) {
        thread::scope(|scope| {
            scope.spawn(move || {
                thread::sleep(time);
                end();
            });
            self.talk();
        });
    }

    /// Deletes the topic that chat `n` reads, while both say a line. Returns when there is a new one.
    fn delete(&mut self, n: usize, how: &str, pause: Duration) {
        let topic = self.names[n].clone();
        thread::scope(|scope| {
            scope.spawn(|| cluster(&[how, &topic]));
            thread::sleep(pause);
            self.say();
        });
        self.deletions[n] += 1;
        self.partitions[n] = 1;
        // The line before may still have been on its way.
        let last_two = &self.lines[self.lines.len() - 2..];
        self.doomed[n].extend_from_slice(last_two);
        if how == "delete" {
            // The chats create it by asking for it. Until then, a broker may take lines into the old one.
            let (chat, count) = (&self.chats[n], self.deletions[n]);
            let is_reported = |bytes: &[u8]| recreations(bytes) == count;
            let is_reported = chat.stderr.wait(PATIENCE, is_reported);
            assert!(is_reported, "no notice {count}\n{}", chat.report());
        }
    }

    fn add_partition(&mut self, n: usize) {
        self.partitions[n] += 1;
        let count = self.partitions[n].to_string();
        cluster(&["partitions", &self.names[n], &count]);
    }

    /// All lines that were not doomed were shown once, and in order, and each new topic was reported once.
    fn end(self) {
        for (n, mut chat) in self.chats.into_iter().enumerate() {
            chat.close();
            let ended = chat.wait().code(0);
            assert_eq!(
                recreations(ended.stderr.as_bytes()),
                self.deletions[n],
                "{}",
                ended.report()
            );
            let is_safe = |line: &&str| !self.doomed[n].iter().any(|doomed| doomed == line);
            let shown = text(&ended.stdout);
            let (shown, doomed): (Vec<_>, Vec<_>) = shown.split_inclusive('\n').partition(is_safe);
            print_figures(format_args!(
                "{}: deleted {} times; of {} lines said meanwhile, {} shown",
                self.names[n],
                self.deletions[n],
                self.doomed[n].len(),
                doomed.len()
            ));
            let said = self.lines.iter().map(String::as_str);
            let said: Vec<_> = said.filter(is_safe).collect();
            assert_eq!(shown, said, "{}", ended.report());
        }
    }
}

/// How often a chat's standard error says that its topic was created again.
fn recreations(bytes: &[u8]) -> usize {
    text(bytes).matches("was deleted and created again").count()
}

fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// Waits until kcat reads these lines of a topic. Then they must be in what `reader` has printed after its first `start`
/// bytes, or soon be there. Returns all that kcat has read.
fn shows_what_kcat_reads(
    on: &Kafka,
    topic: &str,
    lines: &[String],
    reader: &Running,
    start: usize,
) -> Vec<u8> {
    let has_all = |bytes: &[u8]| lines.iter().all(|line| contains(bytes, line.as_bytes()));
    let servers = on.servers();
    // It would wait for a broker that is stopped, although another one leads by then.
    let kcat = ["5", "kcat", "-Ceq", "-o", "beginning", "-t", topic];
    let what = || format!("read by kcat: {lines:?}\n{}", reader.report());
    let log = poll_until(PATIENCE, what, || {
        let log = Program::other("timeout", &kcat)
            .args(["-b", &servers])
            .run()
            .stdout;
        has_all(&log).then_some(log)
    });
    if !(reader.stdout).wait(SILENCE, |bytes| has_all(&bytes[start..])) {
        let [log, shown] =
            [log, reader.stdout.bytes()].map(|it| it[it.len().saturating_sub(2000)..].to_vec());
        panic!(
            "{lines:?} not shown within {SILENCE:?}\nkcat reads ...{}\nshown: ...{}\n{}",
            text(&log),
            text(&shown),
            reader.report()
        );
    }
    log
}

/// What happens, in the words of Kafka and of `tests/cluster`.
const FAULTS: [&str; 10] = [
    "KILL",
    "TERM",
    "STOP",
    "min.insync.replicas",
    "max.message.bytes",
    "compression.type",
    "partitions",
    "recreate",
    "delete",
    "recreate and KILL",
];

/// Does one thing to the cluster, while lines are in flight.
fn disturb(round: &Round<'_>, chats: &mut Chats<'_>, chance: &mut Chance) {
    let fault = FAULTS[chance.below(FAULTS.len() as u64) as usize];
    let topics = [&chats.names[0], &chats.names[1], round.topic].map(String::from);
    // All have recovered from the last fault.
    let leaders = topics.each_ref().map(|topic| leader_in_full_sync(topic));
    let n = chance.below(3) as usize;
    let chat = chance.below(2) as usize;
    let (topic, leader) = (&topics[n], &leaders[n]);
    print_figures(format_args!(
        "round {}: {fault}; {topic}, led by {leader}; {}",
        round.number, topics[chat]
    ));
    let configure = |property: &str| cluster(&["configure", topic, property]);
    round.allow_half();
    chats.say();
    thread::sleep(chance.pause(150));
    match fault {
        // TERM lets the broker hand over what it leads.
        "KILL" | "TERM" => {
            let broker = Killed::by(fault, leader);
            round.allow_rest();
            chats.talk_until(chance.pause(3000), || drop(broker));
        }
        "STOP" => {
            cluster(&["signal", "STOP", leader]);
            round.allow_rest();
            let end = || cluster(&["signal", "CONT", leader]);
            chats.talk_until(chance.pause(STOPPED), end);
        }
        "min.insync.replicas" => {
            configure("min.insync.replicas=3");
            let follower = ["1", "2", "3"].into_iter().find(|node| node != leader);
            let broker = Killed::node(follower.unwrap());
            round.allow_rest();
            let time = chance.pause(3000) + Duration::from_secs(3);
            chats.talk_until(time, || drop(broker));
            configure("min.insync.replicas=2");
        }
        "max.message.bytes" => {
            // Less than the lines of one round have.
            configure("max.message.bytes=1000");
            round.allow_rest();
            chats.talk();
            configure("max.message.bytes=1048588");
        }
        "compression.type" => {
            let codecs = ["uncompressed", "gzip", "snappy", "lz4", "zstd", "producer"];
            let codec = codecs[chance.below(codecs.len() as u64) as usize];
            configure(&format!("compression.type={codec}"));
        }
        "partitions" => chats.add_partition(chat),
        "recreate" | "delete" => chats.delete(chat, fault, chance.pause(500)),
        _ => {
            chats.delete(chat, "recreate", chance.pause(500));
            drop(Killed::node(leader));
        }
    }
    round.allow_all();
    chats.talk();
    let senders = round.load.senders().iter();
    let last: Vec<_> = senders.map(|it| format!("{it} {}\n", round.end)).collect();
    shows_what_kcat_reads(chats.on, round.topic, &last, round.reader, round.printed);
}

#[test]
#[ignore = "needs a real Kafka of three brokers"]
fn three_brokers_in_chaos_lose_no_line_and_silence_no_chat() {
    let on = Kafka::real();
    let plan = plan(60);
    let mut chance = Chance::new(plan.seed);
    let mut chats = Chats::start(&on);
    // Nothing happens before both read.
    chats.talk();
    let report = run(&on, &plan, |round| {
        disturb(&round, &mut chats, &mut chance);
    });
    chats.end();
    conclude(&named("chaos"), &plan, report);
}
