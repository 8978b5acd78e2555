package snapshot

const LookEvery = lookEvery

// Look is what Run does each LookEvery.
func (c *Commits) Look() { c.look() }
