//! The push job: plans what edges have reported as popular, and orders the push of a cluster when its
//! off-peak window opens or an operator requests it.

pub(crate) mod learned;
pub(crate) mod order;
pub(crate) mod plan_view;
pub(crate) mod planner;
pub(crate) mod scheduler;
