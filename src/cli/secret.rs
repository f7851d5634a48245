//! Where a secret comes from: a file, or an answer at the terminal.

use std::env;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, tcgetattr, tcsetattr};
use nix::unistd::Pid;
use zeroize::Zeroizing;

use super::shell_word;
use crate::ending::{say, spawn};
use crate::error::{Error, Result};
use crate::seal::{self, Secret};

/// The permissions of a file that let others read or change it.
const OTHERS: u32 = 0o066;

/// What Ctrl-C is where it is no signal.
const CTRL_C: u8 = 3;

/// The signals that end a program.
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// What the thread that asks sends to the program once it has an answer.
const ANSWERED: Signal = Signal::SIGUSR1;

/// The secret that lines are sealed with.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sealed lines")]
pub struct SecretSource {
    /// Seal lines, and open them, with the secret in this file [env: KAFKA_CHAT_SECRET_FILE]
    #[arg(long, value_name = "FILE", conflicts_with = "secret")]
    secret_file: Option<PathBuf>,

    /// Ask for that secret at the terminal
    #[arg(long)]
    secret: bool,
}

impl SecretSource {
    /// The secret, if there is one. None of the `names` that are given can be it: someone may take it for the value of
    /// `--secret`, and a name is sent in the open.
    pub fn secret(&self, names: &[&Option<String>]) -> Result<Option<Secret>> {
        let secret = match self.file()? {
            _ if self.secret => ask()?,
            Some((file, named)) => read(&file, named)?,
            None => return Ok(None),
        };
        match names.iter().copied().flatten().any(|it| secret.is(it)) {
            true => Err(Error::usage(
                "a name is the secret: --secret takes no value, it asks for it",
            )),
            false => Ok(Some(secret)),
        }
    }

    /// The words of a command line by which another program gets the same secret, but for the environment.
    fn words(&self) -> Vec<String> {
        match &self.secret_file {
            Some(file) => vec!["--secret-file".into(), shell_word(&file.to_string_lossy())],
            None if self.secret => vec!["--secret".into()],
            None => Vec::new(),
        }
    }

    fn is_given(&self) -> Result<bool> {
        Ok(self.secret || self.file()?.is_some())
    }

    /// The file, and where it is named. (Not clap's `env`: with that, the variable would conflict with --secret.)
    fn file(&self) -> Result<Option<(PathBuf, &'static str)>> {
        if let Some(file) = &self.secret_file {
            return Ok(Some((file.clone(), "with --secret-file")));
        }
        match env::var_os("KAFKA_CHAT_SECRET_FILE") {
            // Lines that someone wanted sealed would be sent in the open.
            Some(file) if file.is_empty() && !self.secret => Err(Error::usage(
                "KAFKA_CHAT_SECRET_FILE is empty: name a file, or unset it",
            )),
            file => Ok(file.map(|file| (file.into(), "in KAFKA_CHAT_SECRET_FILE"))),
        }
    }
}

/// What a chat does about sealed lines.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sealed lines")]
pub struct ChatSecret {
    #[command(flatten)]
    source: SecretSource,

    /// Send lines that are not sealed even if PEER's are
    #[arg(long)]
    pub plain: bool,

    /// Print a fresh secret for --secret-file, and exit
    #[arg(long)]
    pub new_secret: bool,
}

impl ChatSecret {
    /// As [`SecretSource::words`].
    pub(crate) fn words(&self) -> Vec<String> {
        self.source.words()
    }

    /// As [`SecretSource::secret`]. A secret cannot be used with `--plain`, nor with these options: each has its name,
    /// and whether it is given.
    pub fn secret(
        &self,
        others: [(&str, bool); 2],
        names: &[&Option<String>],
    ) -> Result<Option<Secret>> {
        let mut options = others.into_iter().chain([("--plain", self.plain)]);
        match options.find(|(_, is_given)| *is_given) {
            Some((option, _)) if self.source.is_given()? => Err(Error::usage(format!(
                "{option} cannot be used with a secret (--secret, --secret-file, KAFKA_CHAT_SECRET_FILE)"
            ))),
            _ => self.source.secret(names),
        }
    }
}

/// The command line. An error of clap repeats what it does not expect, which after `--secret` is the secret.
pub(super) fn arguments<T: Parser>() -> Result<T> {
    T::try_parse().map_err(|error| {
        let mut given = env::args_os().map(|it| it.to_string_lossy().into_owned());
        let is_value = match (error.kind(), error.get(ContextKind::InvalidArg)) {
            (ErrorKind::TooManyValues, _) => given.any(|it| it.starts_with("--secret=")),
            (ErrorKind::UnknownArgument, Some(ContextValue::String(unknown))) => {
                !unknown.starts_with("--") && given.any(|it| it == "--secret")
            }
            _ => false,
        };
        match is_value {
            true => Error::usage("--secret takes no value, it asks for the secret"),
            false => error.exit(),
        }
    })
}

/// Reads a file that is `named` somewhere. Its path is not repeated if it can't be read: it could be the secret itself.
fn read(path: &Path, named: &str) -> Result<Secret> {
    let cannot_read = |why| Error::usage(format!("cannot read the file named {named}: {why}"));
    let file = File::open(path).map_err(cannot_read)?;
    let about = file.metadata().map_err(cannot_read)?;
    if about.is_file() && about.permissions().mode() & OTHERS != 0 {
        say(format!(
            "Others can read or change the secret in {}: chmod 600 makes it yours alone.",
            path.display()
        ));
    }
    // As large as it can get: a buffer that grows leaves its bytes where they were.
    let most = Secret::MOST_INPUT_BYTES + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(most));
    file.take(most as u64)
        .read_to_end(&mut bytes)
        .map_err(cannot_read)?;
    Secret::of(bytes)
}

/// Asks at the terminal, whatever standard input is.
///
/// Crate `rpassword` (7.5.4) leaves the terminal in raw mode at Ctrl-C. Here that is no signal, but ends the line; and a
/// signal ends the program only once the terminal is as it was.
fn ask() -> Result<Secret> {
    let cannot_ask = |why| {
        Error::usage(format!("cannot ask for the secret: {why}"))
            .hint("Without a terminal: --secret-file FILE.")
    };
    let terminal = File::options().read(true).write(true).open("/dev/tty");
    let mut terminal = terminal.map_err(cannot_ask)?;
    let asked = terminal.try_clone().map_err(cannot_ask)?;
    let settings = tcgetattr(&terminal).map_err(|why| cannot_ask(why.into()))?;
    let mut hidden = settings.clone();
    hidden
        .local_flags
        .remove(LocalFlags::ECHO | LocalFlags::ISIG);
    hidden.control_chars[SpecialCharacterIndices::VEOL as usize] = CTRL_C;
    // Blocked in the thread that asks, too.
    let signals: SigSet = ENDING.into_iter().chain([ANSWERED]).collect();
    let unblocked = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let unblocked = unblocked.map_err(|why| cannot_ask(why.into()))?;
    tcsetattr(&terminal, SetArg::TCSAFLUSH, &hidden).map_err(|why| cannot_ask(why.into()))?;
    let (tx, answers) = mpsc::channel();
    let signal = spawn("prompt", move || {
        _ = tx.send(answer(asked));
        _ = kill(Pid::this(), ANSWERED);
    })
    .map(|()| signals.wait());
    _ = tcsetattr(&terminal, SetArg::TCSANOW, &settings);
    _ = terminal.write_all(b"\n");
    let interrupted = || Error::failed("interrupted", "no secret was given");
    if signal? != Ok(ANSWERED) {
        return Err(interrupted());
    }
    _ = unblocked.thread_set_mask();
    let answer = answers.recv().map_err(|_| interrupted())?;
    let answer = answer.map_err(cannot_ask)?;
    if answer.last() == Some(&CTRL_C) {
        return Err(interrupted());
    }
    let text = answer.strip_suffix(b"\n").unwrap_or(&answer);
    if text.iter().any(u8::is_ascii_control) {
        return Err(Error::usage("the answer has a key in it that is no text"));
    }
    Secret::of(answer)
}

/// Asks, and waits for one line: a terminal gives one at a time.
fn answer(mut terminal: File) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut answer = Zeroizing::new(vec![0; Secret::MOST_INPUT_BYTES + 1]);
    terminal.write_all(b"Secret: ")?;
    let length = terminal.read(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

/// Prints a fresh secret on standard output.
pub fn print_fresh() -> Result<()> {
    let mut line = seal::fresh()?;
    // There is room for it.
    line.push('\n');
    let written = io::stdout().write_all(line.as_bytes());
    written.map_err(|why| Error::failed("cannot write to standard output", why))
}
