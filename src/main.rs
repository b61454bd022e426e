//! The `runcast` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    runcast::cli::main()
}
