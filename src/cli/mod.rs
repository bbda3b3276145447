//! The command line: arguments into calls, results into text or JSON. No decisions.
//!
//! Results go to stdout, everything else to stderr. With `--json` a command prints exactly one JSON document on stdout, also
//! when it fails.

mod arguments;
mod backup;
mod browse;
mod doctor;
mod init;
mod keygen;
mod logging;
mod output;
mod progress;
mod prune;
mod restore;
mod serve;
mod verify;

use std::sync::Arc;

use clap::{CommandFactory, Parser, error::ErrorKind};
use tokio_util::sync::CancellationToken;

use self::{
    arguments::{Arguments, Command},
    output::Output,
};
use crate::{
    alert,
    config::{CONFIG_VARIABLE, Config},
    operation::{Context, Error, exit},
    pipeline::Progress,
};

/// Runs the program; the value is its exit code.
pub fn main() -> u8 {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    logging::start(&arguments.global);
    // One TLS provider for the whole program; only a second call could fail.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let output = Output::new(&arguments.global);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let message = format!("the runtime does not start: {error}");
            return output.failed(&Error::Usage { message, hint: None });
        }
    };
    // Whoever cannot read a new key has lost it.
    let precious = matches!(arguments.command, Command::Keygen(_));
    let code = output.ended(runtime.block_on(run(arguments, &output)), precious);
    // Work on blocking threads that nobody waits for any more must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    code
}

/// What clap has to say: help and version on stdout with 0, mistakes on stderr with 2.
fn usage(error: &clap::Error) -> u8 {
    let json = std::env::args_os().any(|argument| argument == "--json");
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return exit::DONE;
    }
    if json {
        let message = error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let hint = Some("`altlas-backup --help` lists commands and options".to_owned());
        return Output::json().failed(&Error::Usage { message, hint });
    }
    let _ = error.print();
    exit::USAGE
}

async fn run(arguments: Arguments, output: &Output) -> u8 {
    let Arguments { global, command } = arguments;
    match command {
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "altlas-backup", &mut std::io::stdout());
            return exit::DONE;
        }
        Command::Man => {
            return match clap_mangen::Man::new(Arguments::command()).render(&mut std::io::stdout()) {
                Ok(()) => exit::DONE,
                Err(_) => exit::FAILED,
            };
        }
        Command::Keygen(arguments) => {
            return keygen::run(&arguments, output).unwrap_or_else(|error| output.failed(&error));
        }
        _ => {}
    }
    let environment = Arc::new(|name: &str| std::env::var(name).ok());
    let path = global.config.clone().or_else(|| environment(CONFIG_VARIABLE).map(Into::into));
    let config = match Config::load(path.as_deref(), global.repository.as_deref(), &*environment) {
        Ok(config) => config,
        Err(error) => return output.failed(&error.into()),
    };
    let context = Context {
        config: Arc::new(config),
        environment,
        cancel: CancellationToken::new(),
        progress: Arc::new(Progress::default()),
    };
    tokio::spawn(cancel_on_signal(context.cancel.clone()));
    let (run, began) = (alerted(&command), tokio::time::Instant::now());
    let done = match command {
        // A restore cleans up after itself, so that it is not simply dropped.
        Command::Restore(arguments) => restore::run(&context, arguments, output).await,
        // Nor a verification, with servers that others have given it.
        Command::Verify { backup, level } => verify::run(&context, &backup, level, output).await,
        // Nor is a backup, once it commits.
        Command::Backup { source } => backup::run(&context, &source, output).await,
        // Which is told to stop, and has then done what it is for.
        Command::Serve { observe_only } => serve::run(&context, observe_only, output).await,
        other => tokio::select! {
            done = dispatch(&context, other, output) => done,
            () = context.cancel.cancelled() => Err(Error::Interrupted),
        },
    };
    let code = match &done {
        Ok(code) => *code,
        Err(error) => output.failed(error),
    };
    if let Some(run) = run {
        alert::after(&context, run, began, done.as_ref().err()).await;
    }
    code
}

/// Is somebody who is not there to hear how it ended?
fn alerted(command: &Command) -> Option<alert::Run> {
    match command {
        Command::Backup { .. } => Some(alert::Run::Backup),
        Command::Verify { .. } => Some(alert::Run::Verify),
        Command::Prune(arguments) if !arguments.dry_run && arguments.undo.is_none() => Some(alert::Run::Prune),
        _ => None,
    }
}

async fn dispatch(context: &Context, command: Command, output: &Output) -> Result<u8, Error> {
    match command {
        Command::Init { if_missing } => init::run(context, if_missing, output).await,
        Command::List => browse::list(context, output).await,
        Command::Show { backup } => browse::show(context, &backup, output).await,
        Command::Prune(arguments) => prune::run(context, &arguments, output).await,
        Command::Doctor => doctor::run(context, output).await,
        // Served before there is a context.
        Command::Restore(_)
        | Command::Verify { .. }
        | Command::Backup { .. }
        | Command::Serve { .. }
        | Command::Keygen(_)
        | Command::Completions { .. }
        | Command::Man => Ok(exit::DONE),
    }
}

/// The first signal asks for an orderly end, a second one ends at once.
async fn cancel_on_signal(cancel: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    for again in [false, true] {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if again {
            std::process::exit(i32::from(exit::INTERRUPTED));
        }
        tracing::warn!("stopping; a second signal stops at once");
        cancel.cancel();
    }
}
