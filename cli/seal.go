package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
)

func sealCommand() *cli.Command {
	return &cli.Command{Name: "seal", Usage: "have all peers drop their keys: nothing is served until 'unseal' (role superuser)",
		Description: "When it returns, no peer answers from keys any more. A peer that is cut off cannot answer either, and drops its keys\nwhen it hears of it. Restarted peers stay sealed. Peers go on voting and replicating.",
		Flags:       []cli.Flag{peerFlag("seal only this peer, restarts included"), yesFlag()},
		Action:      with(setSeal(true))}
}

func unsealCommand() *cli.Command {
	return &cli.Command{Name: "unseal", Usage: "let the peers have their keys again, from the Keepers (role superuser)",
		Description: "Peers that were sealed by themselves stay sealed; --peer ends that.",
		Flags:       []cli.Flag{peerFlag("unseal only this peer, which was sealed by itself")},
		Action:      with(setSeal(false))}
}

func peerFlag(what string) cli.Flag {
	return &cli.StringFlag{Name: "peer", Usage: "`ID`: " + what}
}

// sealPatience is how long the peers are looked at for what became of it.
const sealPatience = 10 * time.Second

// sealed is what became of a change of the seal.
type sealed struct {
	Sealed bool     `json:"sealed"` // what was asked for
	Peer   string   `json:"peer,omitempty"`
	Done   []string `json:"done"`   // peers of which it is so
	Others []string `json:"others"` // peers of which it is not, or not known
}

func setSeal(on bool) func(*cli.Context, dialer) error {
	return func(c *cli.Context, dial dialer) error {
		if err := arguments(c, 0, 0); err != nil {
			return err
		}
		peer := c.String("peer")
		if c.IsSet("peer") && peer == "" {
			return usage("--peer is empty; without it the whole cluster is meant")
		}
		if on {
			question := "Seal the cluster? Nothing is served until 'spikectl operator unseal'"
			if peer != "" {
				question = fmt.Sprintf("Seal %s? It serves nothing until 'spikectl operator unseal --peer %s'", peer, peer)
			}
			if err := ask(c, question); err != nil {
				return err
			}
		}
		cl, ctx, err := dial()
		if err != nil {
			return err
		}
		change := cl.Unseal
		if on {
			change = cl.Seal
		}
		if err := change(ctx, peer); err != nil {
			return needsRole(err, "superuser")
		}
		result := sealedPeers(ctx, cl, on, peer)
		return show(c, result, func(io.Writer) { tellSealed(c.App.ErrWriter, result) })
	}
}

// sealedPeers looks at the peers until all of those concerned are as they should
// be, or for so long.
func sealedPeers(ctx context.Context, cl *client.Client, on bool, peer string) sealed {
	ctx, cancel := context.WithTimeout(ctx, sealPatience)
	defer cancel()
	result := sealed{Sealed: on, Peer: peer, Done: []string{}, Others: []string{}}
	for {
		status, err := cl.Status(ctx)
		if err == nil {
			result.Done, result.Others = []string{}, []string{}
			for _, p := range status.Peers {
				switch {
				case peer != "" && p.ID != peer:
				case p.Reachable && p.Sealed == on:
					result.Done = append(result.Done, p.ID)
				default:
					result.Others = append(result.Others, p.ID)
				}
			}
			if len(result.Others) == 0 {
				return result
			}
		}
		select {
		case <-ctx.Done():
			return result
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func tellSealed(w io.Writer, r sealed) {
	slices.Sort(r.Done)
	done, others := strings.Join(r.Done, ", "), strings.Join(r.Others, ", ")
	switch {
	case r.Sealed && r.Peer == "":
		fmt.Fprintln(w, "the cluster is sealed: nothing is served until 'spikectl operator unseal'")
	case r.Sealed:
		fmt.Fprintf(w, "%s is sealed until 'spikectl operator unseal --peer %s'\n", r.Peer, r.Peer)
	case r.Peer == "":
		fmt.Fprintln(w, "the cluster is not sealed any more")
	default:
		fmt.Fprintf(w, "%s may have its keys again\n", r.Peer)
	}
	if done != "" && r.Sealed {
		fmt.Fprintf(w, "without keys: %s\n", done)
	} else if done != "" {
		fmt.Fprintf(w, "with their keys: %s\n", done)
	}
	if others != "" && r.Sealed {
		fmt.Fprintf(w, "not heard of: %s; cut off or down, they can serve nothing, and drop their keys when they hear of it\n", others)
	} else if others != "" {
		fmt.Fprintf(w, "not yet: %s; 'spikectl status' says why\n", others)
	}
}
