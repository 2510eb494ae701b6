"""What keys and limits cost the whole proxy, by where they are kept."""
