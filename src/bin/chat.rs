//! Both at once: shows what the other writes, and sends them what is typed.

use std::process::ExitCode;
use std::thread;

use clap::Parser;
use kafka_chat::cli::{self, Connection, Delivery};
use kafka_chat::error::Result;
use kafka_chat::session::{self, Parties};
use kafka_chat::terminal::{self, Terminal};

/// Talks with PEER, and with nobody else
#[derive(Parser)]
#[command(
    version,
    after_help = "Example: chat alice bob, and elsewhere: chat bob alice"
)]
struct Arguments {
    /// Your name; asked for if left out
    me: Option<String>,
    /// Whom to talk with; asked for if left out
    peer: Option<String>,
    /// Show lines that carry no name, too
    #[arg(long)]
    unsigned: bool,
    /// Talk with the tutorial's chat.py, which swaps the topics and signs nothing
    #[arg(long)]
    tutorial: bool,
    #[command(flatten)]
    delivery: Delivery,
    #[command(flatten)]
    connection: Connection,
}

fn main() -> ExitCode {
    cli::run(|| chat(Arguments::parse()))
}

fn chat(arguments: Arguments) -> Result<()> {
    let me = cli::name(arguments.me, cli::WHO_ARE_YOU)?;
    let peer = cli::name(arguments.peer, cli::WHO_ELSE)?;
    let parties = Parties::new(me, peer, arguments.unsigned, arguments.tutorial)?;
    let cluster = arguments.connection.connect()?;
    let mut terminal = Terminal::open(parties.me())?;
    let timeout = arguments.delivery.timeout();
    let (session, reader, mut writer) =
        session::open(cluster.as_ref(), parties, timeout, terminal.screen())?;

    let (ending, typed) = (session.clone(), terminal.is_typed());
    cli::on_signal(move || ending.interrupted(typed))?;
    let ending = session.clone();
    thread::spawn(move || cli::exit(ending.end(reader.run())));
    let ending = session.clone();
    terminal::on_closed(move || cli::exit(ending.end(Ok(()))));
    // Not returned: a client that is taken down in order takes longer than anyone wants to wait.
    cli::exit(session.end(writer.run(&mut terminal)))
}
