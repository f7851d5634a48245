//! Prints what arrives in the user's topic.

use std::process::ExitCode;

use clap::Parser;
use kafka_chat::cli::{self, Connection, From};
use kafka_chat::ending;
use kafka_chat::error::Result;
use kafka_chat::name::Name;
use kafka_chat::read_limit::ReadLimit;
use kafka_chat::terminal::{Format, Output};

/// Prints the messages that others send to ME
#[derive(Parser)]
#[command(version, after_help = "Example: subscriber bob --from earliest -e")]
struct Arguments {
    /// Your name, which is your topic's; asked for if left out
    me: Option<String>,
    /// Where to start: after the newest message, or at the oldest one kept
    #[arg(long, value_name = "WHERE", default_value = "latest")]
    from: From,
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
    /// Print all about each message, as an object of JSON on a line
    #[arg(long, conflicts_with_all = ["show_sender", "time"])]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Arguments {
    /// The option, if there is one, that needs more of a record than its key and its value.
    fn that_reads_in_full(&self) -> Option<&'static str> {
        let options = [(self.json, "--json"), (self.time, "--time")];
        let mut given = options.iter().filter(|(is_given, _)| *is_given);
        given.next().map(|(_, option)| *option)
    }

    fn format(&self, me: &Name) -> Format {
        match self.json {
            true => Format::Json(me.clone()),
            false => Format::Line {
                with_time: self.time,
                with_sender: self.show_sender,
            },
        }
    }
}

fn main() -> ExitCode {
    ending::run(|| subscribe(Arguments::parse()))
}

fn subscribe(mut arguments: Arguments) -> Result<()> {
    let me = cli::name(arguments.me.take(), cli::WHO_ARE_YOU)?;
    let cluster = match arguments.that_reads_in_full() {
        Some(option) => arguments.connection.connect_to_read_in_full(option)?,
        None => arguments.connection.connect()?,
    };
    let mut consumer = cluster.consumer(&me, arguments.from.into())?;
    let ends = arguments.until_end.then(|| consumer.end_offsets());
    let limit = ReadLimit::new(arguments.count, ends.transpose()?);
    let output = Output::new(arguments.format(&me));
    let hint = format!("waiting for messages to {me}; Ctrl-C ends");
    let if_stuck = limit.verdict(&consumer.position());
    ending::supervise("consumer", if_stuck, move |stop| {
        limit.print(consumer.as_mut(), output, &hint, stop)
    })
}
