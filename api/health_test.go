package api_test

import (
	"testing"

	"github.com/spike-ha/spike-ha/api"
	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
)

func TestHealthStatus(t *testing.T) {
	t.Parallel()
	fresh := client.Health{Formed: true, Current: true}
	sealed := client.Health{Formed: true, Current: true, Initialised: true, Sealed: true, LeaderKnown: true}
	leads := client.Health{Formed: true, Current: true, Initialised: true, Leader: true, LeaderKnown: true}
	follows := client.Health{Formed: true, Current: true, Initialised: true, LeaderKnown: true}
	removed := client.Health{Formed: true, Current: true, Initialised: true, Sealed: true, Removed: true}
	drained := client.Health{Formed: true, Current: true, Initialised: true, Leader: true, LeaderKnown: true, Draining: true}
	lost := client.Health{Formed: true, Current: true, Initialised: true}
	for _, c := range []struct {
		health client.Health
		query  string
		want   int // 0: refused
	}{
		{client.Health{}, "", 501}, {client.Health{Formed: true, Sealed: true}, "", 503}, {fresh, "", 501}, {sealed, "", 503}, {leads, "", 200}, {follows, "", 473}, {lost, "", 474},
		{fresh, "uninitcode=200", 200}, {sealed, "sealedcode=204&uninitcode=299", 204}, {leads, "activecode=201", 201},
		{follows, "standbyok", 200}, {follows, "perfstandbyok=true", 200}, {follows, "standbyok=false", 473},
		{follows, "perfstandbyok=1&activecode=299", 299}, {follows, "standbycode=429", 429},
		{follows, "standbycode=429&performancestandbycode=210", 210}, {leads, "standbycode=429", 200},
		{lost, "standbyok=true&perfstandbyok=true", 474}, {lost, "haunhealthycode=503", 503},
		{removed, "", 530}, {removed, "removedcode=410", 410}, {removed, "sealedcode=200", 530}, {drained, "", 503}, {drained, "standbyok=true&activecode=200&sealedcode=200", 503},
		{leads, "drsecondarycode=200&removedcode=500", 200}, {sealed, "standbyok=true", 503},
		{leads, "sealedcode=99", 0}, {leads, "sealedcode=600", 0}, {leads, "sealedcode=x", 0}, {leads, "standbyok=maybe", 0},
		{leads, "colour=red", 0}, {leads, "sealedcode=200&sealedcode=201", 0}, {leads, "%zz", 0},
	} {
		got, err := api.HealthStatus(c.health, c.query)
		if got != c.want || (c.want == 0) != (secret.CodeOf(err) == secret.CodeInvalid) {
			t.Errorf("%+v ?%s: %d %v, want %d", c.health, c.query, got, err, c.want)
		}
	}
}
