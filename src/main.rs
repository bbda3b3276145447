//! The `altlas-backup` program: see `altlas_backup::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(altlas_backup::cli::main())
}
