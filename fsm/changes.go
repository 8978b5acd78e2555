package fsm

// changes collects what one entry changes, each record once: the first old and
// the last new one, in the order of the first changes. The maps are looked up
// in, never ranged over. Acts are all kept, in order.
type changes struct {
	acts     []Act
	secrets  []SecretChange
	policies []PolicyChange
	secretAt map[Token]int
	policyAt map[Token]int
	room     int  // commands in the entry
	reset    bool // everything was replaced
}

func newChanges() changes {
	return changes{secretAt: map[Token]int{}, policyAt: map[Token]int{}}
}

func (c *changes) secret(t Token, old, n *secretRecord) {
	at, seen := c.secretAt[t]
	if !seen {
		at = len(c.secrets)
		c.secretAt[t] = at
		if c.secrets == nil {
			c.secrets = make([]SecretChange, 0, c.room)
		}
		c.secrets = append(c.secrets, SecretChange{Token: t})
		if old != nil {
			c.secrets[at].Old = &old.pb
		}
	}
	c.secrets[at].New = nil
	if n != nil {
		c.secrets[at].New = &n.pb
	}
}

func (c *changes) act(a Act) {
	if c.acts == nil {
		c.acts = make([]Act, 0, c.room)
	}
	c.acts = append(c.acts, a)
}

func (c *changes) policy(t Token, old, n *policyRecord) {
	at, seen := c.policyAt[t]
	if !seen {
		at = len(c.policies)
		c.policyAt[t] = at
		c.policies = append(c.policies, PolicyChange{Token: t})
		if old != nil {
			c.policies[at].Old = &old.pb
		}
	}
	c.policies[at].New = nil
	if n != nil {
		c.policies[at].New = &n.pb
	}
}

// delta hands the lists over and makes c ready for the next entry. What came
// and went within the entry is left out. Of an entry that replaced everything
// there are no lists: they would begin in another state.
func (c *changes) delta() (d Delta) {
	if c.reset {
		*c = newChanges()
		return Delta{Reset: true}
	}
	d = Delta{Secrets: c.secrets[:0:len(c.secrets)], Policies: c.policies[:0:len(c.policies)]}
	for _, s := range c.secrets {
		if s.Old != nil || s.New != nil {
			d.Secrets = append(d.Secrets, s)
		}
	}
	for _, p := range c.policies {
		if p.Old != nil || p.New != nil {
			d.Policies = append(d.Policies, p)
		}
	}
	d.Acts = c.acts
	c.secrets, c.policies, c.acts = nil, nil, nil
	clear(c.secretAt)
	clear(c.policyAt)
	return d
}
