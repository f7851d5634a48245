//! What `subscriber` is asked to read and to print: its options.

use clap::Args;

use crate::client::{Cluster, Consumer, Start};
use crate::ending::say;
use crate::error::Result;
use crate::last::{Last, MAX_COUNT};
use crate::name::Name;
use crate::opener::{Opener, Wanted};
use crate::read_limit::ReadLimit;
use crate::seal::Secret;
use crate::terminal::{Format, Output};
use crate::time;

/// What is read of a topic, and how it is printed.
#[derive(Args, Debug)]
pub struct Reading {
    /// Where to start: latest (after the newest message), earliest (at the oldest one kept), a time
    /// (2026-11-24, 2026-11-24T14:02, or with a zone as RFC 3339 has it), or how long ago (90s, 10m,
    /// 2h, 3d)
    #[arg(long, value_name = "WHERE", default_value = "latest", value_parser = start)]
    from: Start,

    /// Start at the last N messages: with several partitions, the last by their time
    #[arg(
        long,
        value_name = "N",
        conflicts_with = "from",
        value_parser = clap::value_parser!(u64).range(..=MAX_COUNT)
    )]
    last: Option<u64>,

    /// Stop after N messages
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,

    /// Stop at the end that the log had at the start
    #[arg(short = 'e', long)]
    until_end: bool,

    /// Print the sender's name before each message
    #[arg(short, long)]
    show_sender: bool,

    /// Print the local time of each message before it
    #[arg(long)]
    time: bool,

    /// Print each message with its time, key and headers, as one JSON object per line
    #[arg(long, conflicts_with_all = ["show_sender", "time"])]
    json: bool,
}

/// Where to start: `latest`, `earliest`, or a time.
fn start(text: &str) -> Result<Start> {
    match text {
        "latest" => Ok(Start::Latest),
        "earliest" => Ok(Start::Earliest),
        time => time::parse(time).map(Start::Since),
    }
}

impl Reading {
    /// The option, if any, that needs more of a record than its key and its value.
    pub fn option_that_reads_in_full(&self) -> Option<&'static str> {
        let options = [
            (self.json, "--json"),
            (self.time, "--time"),
            (self.last.is_some(), "--last"),
            (matches!(self.from, Start::Since(_)), "--from with a time"),
        ];
        let mut given = options.iter().filter(|(is_given, _)| *is_given);
        given.next().map(|(_, option)| *option)
    }

    /// Standard output for the messages of a topic.
    pub fn output(&self, topic: &Name) -> Output {
        Output::new(match self.json {
            true => Format::Json(topic.clone()),
            false => Format::Line {
                with_time: self.time,
                with_sender: self.show_sender,
            },
        })
    }

    /// A consumer of a topic, and how far it is read.
    /// With a secret, only its sealed lines are printed.
    pub fn open(
        self,
        cluster: &dyn Cluster,
        topic: &Name,
        secret: Option<Secret>,
        output: &Output,
    ) -> Result<(Box<dyn Consumer>, ReadLimit)> {
        let open = |start| cluster.consumer(topic, start);
        let (mut consumer, limit) = self.start(open, output)?;
        let all = Wanted {
            sender: None,
            count: 0,
            report: |event| say(event),
        };
        let opener = |secret| Opener::new(&secret, topic, consumer.as_mut(), open, &all);
        let opener = secret.map(opener).transpose()?;
        Ok((consumer, limit.opening(opener)))
    }

    fn start(
        self,
        open: impl Fn(Start) -> Result<Box<dyn Consumer>>,
        output: &Output,
    ) -> Result<(Box<dyn Consumer>, ReadLimit)> {
        let Some(count) = self.last else {
            let mut consumer = open(self.from)?;
            let ends = self.until_end.then(|| consumer.end_offsets());
            let limit = ReadLimit::new(self.count, ends.transpose()?);
            return Ok((consumer, limit));
        };
        let last = Last::find(count, &open, |record| output.shows(record))?;
        let consumer = open(last.start())?;
        let ends = self.until_end.then(|| last.ends());
        let limit = ReadLimit::new(self.count, ends).from_last(last);
        Ok((consumer, limit))
    }
}
