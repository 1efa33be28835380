//! `--report`: the test as one page, which needs nothing but a browser to be read.

mod charts;
mod command_line;
mod file;
mod html;
mod sections;

use std::time::SystemTime;

use super::args::Args;
use super::report::Report;
use super::timeline::Timeline;
pub(crate) use file::PageFile;

/// What the page tells.
pub(crate) struct Story<'a> {
    pub(crate) args: &'a Args,
    pub(crate) report: &'a Report,
    pub(crate) timeline: &'a Timeline,
    pub(crate) began: SystemTime,
    /// Why the test ended before its time.
    pub(crate) broke_off: Option<String>,
}

impl Story<'_> {
    /// The page, from `<!DOCTYPE html>` to `</html>`.
    pub(crate) fn to_html(&self) -> anyhow::Result<String> {
        Ok(html::page(self)?.into_string())
    }
}
