package secret

import "strings"

// Role is what a caller's identity alone entitles it to.
type Role string

// The roles; a caller without one is an application and needs policies.
const (
	RoleNone      Role = ""
	RoleSuperuser Role = "superuser" // everything but recover and restore
	RoleAdmin     Role = "admin"     // policies
	RoleOperator  Role = "operator"  // secrets
	RoleRecover   Role = "recover"   // exporting recovery shares
	RoleRestore   Role = "restore"   // feeding them back
	RoleLite      Role = "lite"      // the cipher only
	RoleBootstrap Role = "bootstrap" // initialising and verifying
	RoleNexus     Role = "nexus"
	RoleKeeper    Role = "keeper"
)

// Caller is an authenticated identity: a SPIFFE id from the verified chain of
// the connection in use, and the role that its path has.
type Caller struct {
	ID   string // spiffe://trust-domain/path
	Role Role
}

// TrustDomains says which trust domain each kind of identity must come from,
// as SPIKE's SPIKE_TRUST_ROOT_* variables do. Several are comma-separated.
type TrustDomains struct {
	Nexus, Keeper, Pilot, Bootstrap, Lite []string
}

// rolePaths are matched by whole segments: the path itself or anything below it.
var rolePaths = []struct {
	path string
	role Role
	of   func(TrustDomains) []string
}{
	{"/spike/nexus", RoleNexus, func(t TrustDomains) []string { return t.Nexus }},
	{"/spike/keeper", RoleKeeper, func(t TrustDomains) []string { return t.Keeper }},
	{"/spike/bootstrap", RoleBootstrap, func(t TrustDomains) []string { return t.Bootstrap }},
	{"/spike/pilot/role/superuser", RoleSuperuser, func(t TrustDomains) []string { return t.Pilot }},
	{"/spike/pilot/role/admin", RoleAdmin, func(t TrustDomains) []string { return t.Pilot }},
	{"/spike/pilot/role/operator", RoleOperator, func(t TrustDomains) []string { return t.Pilot }},
	{"/spike/pilot/role/recover", RoleRecover, func(t TrustDomains) []string { return t.Pilot }},
	{"/spike/pilot/role/restore", RoleRestore, func(t TrustDomains) []string { return t.Pilot }},
	{"/spike/workload/role/lite", RoleLite, func(t TrustDomains) []string { return t.Lite }},
}

// ParseCaller reads a verified SPIFFE id, given as its trust domain and path
// (with the leading slash). An id whose path is a role's but whose trust domain
// is not configured for that role has no role at all.
func (t TrustDomains) ParseCaller(trustDomain, path string) Caller {
	c := Caller{ID: "spiffe://" + trustDomain + path}
	for _, r := range rolePaths {
		if path != r.path && !strings.HasPrefix(path, r.path+"/") {
			continue
		}
		for _, d := range r.of(t) {
			if d == trustDomain {
				c.Role = r.role
			}
		}
		return c
	}
	return c
}

// All lists every configured trust domain, each once.
func (t TrustDomains) All() []string {
	var all []string
	seen := map[string]bool{}
	for _, list := range [][]string{t.Nexus, t.Keeper, t.Pilot, t.Bootstrap, t.Lite} {
		for _, d := range list {
			if !seen[d] {
				seen[d] = true
				all = append(all, d)
			}
		}
	}
	return all
}
