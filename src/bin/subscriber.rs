//! Prints what arrives in the user's topic.

use std::ops::ControlFlow;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use kafka_chat::cli::{self, Connection};
use kafka_chat::client::{Offsets, Start};
use kafka_chat::error::{Error, Result};
use kafka_chat::output::Output;

/// Prints the messages that others send to ME
#[derive(Parser)]
#[command(
    version,
    after_help = "Example: subscriber bob --from earliest --until-end"
)]
struct Arguments {
    /// Your name, which is your topic's; asked for if left out
    me: Option<String>,
    /// Where to start: behind the newest message, or at the oldest one kept
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

#[derive(Clone, Copy, ValueEnum)]
enum From {
    Latest,
    Earliest,
}

fn main() -> ExitCode {
    cli::run(subscribe)
}

fn subscribe() -> Result<()> {
    let arguments = Arguments::parse();
    let me = cli::name(arguments.me.clone(), cli::WHO_ARE_YOU)?;
    let start = match arguments.from {
        From::Latest => Start::Latest,
        From::Earliest => Start::Earliest,
    };
    let cluster = arguments.connection.connect()?;
    let mut consumer = cluster.consumer(&me, start, cli::listener())?;
    let ends = match arguments.until_end {
        true => Some(consumer.end_offsets()?),
        false => None,
    };
    let stopped = cli::stop_on_signal()?;
    let mut output = Output::new(arguments.show_sender);
    let mut left = arguments.count.unwrap_or(u64::MAX);
    while left > 0 && !reached(&consumer.position(), ends.as_ref()) {
        if stopped.is_set() {
            return match arguments.count.is_some() || arguments.until_end {
                true => Err(Error::failed(
                    "interrupted",
                    "not all was read that was to be",
                )),
                false => Ok(()),
            };
        }
        let mut written = Ok(());
        consumer.poll(cli::TICK, &mut |record| {
            if is_before(record.offset, ends.as_ref(), record.partition) {
                left -= 1;
                written = output.message(record.key, record.value);
            }
            match left == 0 || written.is_err() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        written.and_then(|()| output.flush())?;
    }
    Ok(())
}

fn reached(position: &Offsets, ends: Option<&Offsets>) -> bool {
    ends.is_some_and(|ends| ends.iter().all(|(p, end)| position.get(p) >= Some(end)))
}

fn is_before(offset: i64, ends: Option<&Offsets>, partition: i32) -> bool {
    ends.is_none_or(|ends| ends.get(&partition).is_some_and(|&end| offset < end))
}
