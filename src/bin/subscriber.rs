//! Prints what arrives in the user's topic.

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use kafka_chat::cli::{self, Connection, From};
use kafka_chat::client::Consumer;
use kafka_chat::ending::{self, Stop, say};
use kafka_chat::error::Result;
use kafka_chat::read_limit::ReadLimit;
use kafka_chat::terminal::Output;

/// How long a poll waits for messages.
const POLL_WAIT: Duration = Duration::from_millis(400);

/// Prints the messages that others send to ME
#[derive(Parser)]
#[command(version, after_help = "Example: subscriber bob --from earliest -e")]
struct Arguments {
    /// Your name, which is your topic's; asked for if left out
    me: Option<String>,
    /// Where to start: after the newest message, or at the oldest one kept
    #[arg(long, value_name = "WHERE", default_value = "latest")]
    from: From,
    /// End after N messages
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
    /// End where the log ended at the start
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
    let cluster = arguments.connection.connect()?;
    let mut consumer = cluster.consumer(&me, arguments.from.into())?;
    let ends = arguments.until_end.then(|| consumer.end_offsets());
    let limit = ReadLimit::new(arguments.count, ends.transpose()?);
    let output = Output::new(arguments.show_sender);
    let hint = format!("waiting for messages to {me}; Ctrl-C ends");
    let if_stuck = limit.verdict(&consumer.position());
    ending::supervise("consumer", if_stuck, move |stop| {
        read(consumer.as_mut(), limit, output, &hint, stop)
    })
}

/// Prints messages up to the limit, or until asked to stop.
fn read(
    consumer: &mut dyn Consumer,
    mut limit: ReadLimit,
    mut output: Output,
    hint: &str,
    stop: &Stop,
) -> Result<()> {
    while !stop.is_requested() && !limit.is_reached(&consumer.position()) {
        let mut printed = Ok(());
        let polled = consumer.poll(POLL_WAIT, &mut |record| {
            if limit.takes(record.partition, record.offset) {
                printed = output.message(record.key, record.value);
            }
            match printed {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        // What was received is printed, whatever the poll ended with.
        printed.and_then(|()| output.flush())?;
        polled?.iter().for_each(say);
        output.hint_once(hint);
    }
    limit.verdict(&consumer.position())
}
