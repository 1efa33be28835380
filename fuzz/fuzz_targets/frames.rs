//! Feeds the decoders of frames.

#![cfg_attr(fuzzing, no_main)]

handover_fuzz::fuzz!(handover_fuzz::frames);
