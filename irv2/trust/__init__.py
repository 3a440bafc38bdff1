"""Who answers for a bundle."""
