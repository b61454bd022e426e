//! `runcast config`: the effective configuration.

use std::process::ExitCode;

use super::SettingFlags;

pub(super) fn config(settings: SettingFlags) -> ExitCode {
    match settings.load() {
        Ok(config) => {
            print!("{}", config.render());
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}
