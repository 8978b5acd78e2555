package cli

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/spike-ha/spike-ha/api/client"
)

// The new peer inherits the vote of the old one, unless it is said otherwise.
func TestReplaceInheritsTheVote(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		what       string
		old, id    bool // voters
		plan       replacement
		says       string
		wantToVote bool
	}{
		{"a voter", true, false, replacement{}, "gets a vote", true},
		{"a learner", false, false, replacement{}, "is removed", false},
		{"a voter, by a learner", true, false, replacement{known: true}, "is removed", false},
		{"a learner, by a voter", false, false, replacement{vote: true, known: true}, "gets a vote", true},
		{"one that lost its vote to the new one", false, true, replacement{}, "is removed", true},
	} {
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			json.NewEncoder(w).Encode(client.Status{Peers: []client.PeerStatus{
				{ID: "old", Address: "a:1", Voter: x.old, Reachable: true}, {ID: "new", Address: "b:1", Voter: x.id, Reachable: true}}})
		}))
		defer server.Close()
		cl, err := client.New(client.Config{Addresses: []string{server.URL}, TLS: server.Client().Transport.(*http.Transport).TLSClientConfig})
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		r := x.plan
		r.old, r.id, r.address = "old", "new", "b:1"
		step, err := r.next(t.Context(), cl)
		if err != nil || !strings.Contains(step.says, x.says) || r.vote != x.wantToVote {
			t.Errorf("%s: %q, vote %t, %v", x.what, step.says, r.vote, err)
		}
	}
}
