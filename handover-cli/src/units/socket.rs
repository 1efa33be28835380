//! The text of a `.socket` unit.

use super::plan::{Plan, Socket};
use super::text::Text;

/// Writes the unit of the sockets of a name.
pub(super) fn text(plan: &Plan<'_>, socket: &Socket<'_>) -> String {
    let description = plan.args.description.as_deref().unwrap_or(&plan.name).replace('%', "%%");
    let mut text = Text::default();
    text.section("Unit").set("Description", format_args!("{description}: socket {}", socket.name));

    text.section("Socket");
    for listen in &socket.addresses {
        text.why(format_args!("The program checks the address: {}.", listen.in_the_program()));
        text.set(listen.kind.setting(), listen.address.replace('%', "%%"));
    }
    text.why("The name that the program asks for.");
    text.set("FileDescriptorName", socket.name);
    text.set("Service", plan.service());

    text.section("Install").set("WantedBy", "sockets.target");
    text.finish()
}
