package cli

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/secret"
)

// A hint is about what is wrong, and not about a majority that is there.
func TestHints(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		err  error
		want string
	}{
		{&secret.Error{Code: secret.CodeUnavailable, Reason: client.ReasonDraining}, "drain --undo"},
		{&secret.Error{Code: secret.CodeUnavailable, Cause: fmt.Errorf("get: %w", http.ErrSchemeMismatch)}, "does not speak TLS"},
		{fmt.Errorf("data: %w", cluster.ErrDirInUse), "stop the peer first"},
		{&secret.Error{Code: secret.CodeUnavailable}, "a majority of the peers must be up"},
		{&secret.Error{Code: secret.CodeSealed}, "'spikectl operator unseal'"},
		{needsRole(&secret.Error{Code: secret.CodeDenied}, "superuser, admin or operator"), `eval "$(spikectl dev env --role superuser)"`},
	} {
		if got := hintFor(x.err); !strings.Contains(got, x.want) {
			t.Errorf("%v: %q", x.err, got)
		}
	}
}

// A sealed peer finds no Keeper good; that is no news of the Keepers.
func TestMarginOfKeepers(t *testing.T) {
	t.Parallel()
	of := func(good int, health ...string) (a client.KeepersAnswer) {
		a.Good, a.Threshold = good, 2
		for _, h := range health {
			a.Keepers = append(a.Keepers, client.KeeperInfo{KeeperStatus: client.KeeperStatus{Health: h}})
		}
		return a
	}
	for want, a := range map[string]client.KeepersAnswer{
		"1 above the threshold of 2":                      of(3, "good", "good", "good"),
		"just the threshold of 2":                         of(2, "good", "good", "empty"),
		"2 below the threshold of 2":                      of(0, "empty", "empty", "empty"),
		"2 say that they hold theirs, the threshold is 2": of(0, "held", "held", "empty"),
	} {
		if got := margin(a); got != want {
			t.Errorf("%q instead of %q", got, want)
		}
	}
}

// Only where shares are collected do those given before still count.
func TestRefusedShares(t *testing.T) {
	t.Parallel()
	for reason, counts := range map[string]bool{"share_wrong": true, "share_given_already": true, "": true, "not_sealed": false, "operator_sealed": false} {
		got := refusedShare(&secret.Error{Code: secret.CodeInvalid, Reason: reason, Message: "no"}).Error()
		if strings.Contains(got, "still count") != counts {
			t.Errorf("%s: %s", reason, got)
		}
	}
}
