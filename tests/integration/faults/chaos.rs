//! What operators and accidents do to three brokers, at random, while pipes and two chats go on.
//!
//! `KAFKA_CHAT_TEST_ROUNDS` is how often something happens (60, which takes ten minutes).

use std::thread;
use std::time::Duration;

use super::full::{Killed, conclude, leader_in_full_sync, named, plan, print_figures};
use super::load::Chance;
use super::{Round, run};
use crate::kafka::cluster;
use crate::support::{Kafka, PATIENCE, Running, contains, user};

/// How long a broker is stopped.
const STOPPED: u64 = 8000;

/// Two chats with each other. In every round each sends a line, which the other has to show.
struct Chats<'a> {
    on: &'a Kafka,
    names: [String; 2],
    chats: [Running; 2],
    expected: String,
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
            expected: String::new(),
            partitions: [1; 2],
        }
    }

    fn talk(&mut self, round: u64) {
        let line = format!("round {round}.\n");
        self.chats.iter_mut().for_each(|chat| chat.write(&line));
        for (n, chat) in self.chats.iter().enumerate() {
            let has_shown = |bytes: &[u8]| contains(bytes, line.as_bytes());
            if !chat.stdout.wait(PATIENCE, has_shown) {
                let log = self.on.log_bytes(&self.names[n], &["-s"]);
                panic!(
                    "{line:?} is not shown\n{}\n{}\nthe topic has:\n{}",
                    chat.report(),
                    self.chats[1 - n].report(),
                    String::from_utf8_lossy(&log)
                );
            }
        }
        self.expected += &line;
    }

    fn recreate(&mut self, n: usize) {
        cluster(&["recreate", &self.names[n]]);
        self.partitions[n] = 1;
    }

    fn add_partition(&mut self, n: usize) {
        self.partitions[n] += 1;
        cluster(&[
            "partitions",
            &self.names[n],
            &self.partitions[n].to_string(),
        ]);
    }

    /// Each line was shown once, and in order.
    fn end(self) {
        for mut chat in self.chats {
            chat.close();
            chat.wait().code(0).prints(&self.expected);
        }
    }
}

/// Does one thing to the cluster, while lines are in flight.
fn disturb(round: &Round<'_>, chats: &mut Chats<'_>, chance: &mut Chance) {
    let topic = round.topic;
    let configure = |property: &str| cluster(&["configure", topic, property]);
    let leader = leader_in_full_sync(topic);
    let follower = ["1", "2", "3"].into_iter().find(|node| *node != leader);
    let one_of_two = chance.below(2) as usize;
    round.allow_half();
    thread::sleep(chance.pause(150));
    let fault = chance.below(8);
    print_figures(format_args!("round {}: fault {fault}", round.number));
    match fault {
        0 => {
            let broker = Killed::node(&leader);
            round.allow_rest();
            thread::sleep(chance.pause(3000));
            drop(broker);
        }
        1 => {
            cluster(&["signal", "STOP", &leader]);
            round.allow_rest();
            thread::sleep(chance.pause(STOPPED));
            cluster(&["signal", "CONT", &leader]);
        }
        2 => {
            configure("min.insync.replicas=3");
            let broker = Killed::node(follower.unwrap());
            round.allow_rest();
            thread::sleep(chance.pause(3000) + Duration::from_secs(3));
            drop(broker);
            configure("min.insync.replicas=2");
        }
        3 => {
            // Less than the lines of one round have.
            configure("max.message.bytes=1000");
            round.allow_rest();
            thread::sleep(chance.pause(1000));
            configure("max.message.bytes=1048588");
        }
        4 => {
            let codecs = ["uncompressed", "gzip", "snappy", "lz4", "zstd", "producer"];
            let codec = codecs[chance.below(codecs.len() as u64) as usize];
            configure(&format!("compression.type={codec}"));
        }
        5 => chats.add_partition(one_of_two),
        6 => chats.recreate(one_of_two),
        _ => {
            chats.recreate(one_of_two);
            drop(Killed::node(&leader));
        }
    }
    round.allow_all();
}

#[test]
#[ignore = "needs a real Kafka of three brokers"]
fn three_brokers_in_chaos_lose_no_line_and_silence_no_chat() {
    let on = Kafka::real();
    let plan = plan(60);
    let mut chance = Chance::new(plan.seed);
    let mut chats = Chats::start(&on);
    // Nothing happens before both read.
    chats.talk(0);
    let report = run(&on, &plan, |round| {
        disturb(&round, &mut chats, &mut chance);
        chats.talk(round.number + 1);
    });
    chats.end();
    conclude(&named("chaos"), &plan, report);
}
