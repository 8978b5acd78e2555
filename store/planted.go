package store

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/spike-ha/spike-ha/internal/planted"
	"github.com/spike-ha/spike-ha/policy"
	"github.com/spike-ha/spike-ha/secret"
)

// allowedOnce is the side cache that there must not be: for planted.CachedDecision alone.
var allowedOnce sync.Map // caller and path → time

// decision is what the policies of p say.
func decision(p *published, caller secret.Caller, want secret.Permission, on secret.Path) policy.Decision {
	d := p.policies.Decide(caller, want, on)
	if planted.Is(planted.CachedDecision) {
		key := caller.ID + " " + string(on)
		if d.Allowed {
			allowedOnce.Store(key, time.Now())
		} else if at, there := allowedOnce.Load(key); there && time.Since(at.(time.Time)) < time.Second {
			d.Allowed = true
		}
	}
	return d
}

// before are the policies of the last publication: for planted.OlderPolicies alone.
var before atomic.Pointer[policy.Set]

// paired are the policies that a publication gets whose data is as of now.
func paired(now *policy.Set) *policy.Set {
	if planted.Is(planted.OlderPolicies) {
		if older := before.Swap(now); older != nil {
			return older
		}
	}
	return now
}
