"""From whatever a team has as data to rows of token ids and labels. Start at `prepare.prepare_data`."""
