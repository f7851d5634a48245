//! Prints what arrives in the user's topic.

use std::process::ExitCode;

use clap::Parser;
use kafka_chat::cli::{self, Connection, From};
use kafka_chat::ending;
use kafka_chat::error::Result;
use kafka_chat::read_limit::ReadLimit;
use kafka_chat::terminal::Output;

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
    #[command(flatten)]
    connection: Connection,
}

fn main() -> ExitCode {
    ending::run(|| subscribe(Arguments::parse()))
}

fn subscribe(arguments: Arguments) -> Result<()> {
    let me = cli::name(arguments.me, cli::WHO_ARE_YOU)?;
    let (cluster, _) = arguments.connection.connect()?;
    let mut consumer = cluster.consumer(&me, arguments.from.into())?;
    let ends = arguments.until_end.then(|| consumer.end_offsets());
    let limit = ReadLimit::new(arguments.count, ends.transpose()?);
    let output = Output::new(arguments.show_sender);
    let hint = format!("waiting for messages to {me}; Ctrl-C ends");
    let if_stuck = limit.verdict(&consumer.position());
    ending::supervise("consumer", if_stuck, move |stop| {
        limit.print(consumer.as_mut(), output, &hint, stop)
    })
}
